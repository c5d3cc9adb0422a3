{{- /* Names of pools that are not switched off (null), in order, by commas. */ -}}
{{- define "expertmesh.poolNames" -}}
{{- $names := list -}}
{{- range $name, $pool := .Values.expertPools -}}
{{- if not (kindIs "invalid" $pool) -}}{{- $names = append $names $name -}}{{- end -}}
{{- end -}}
{{- sortAlpha $names | join "," -}}
{{- end -}}

{{- /* A pool with its defaults, as YAML: {root, name}. */ -}}
{{- define "expertmesh.pool" -}}
{{- $pool := index .root.Values.expertPools .name -}}
{{- mergeOverwrite (deepCopy .root.Values.expertDefaults) (deepCopy $pool) | toYaml -}}
{{- end -}}

{{- /* Ids that a list such as 0-3,7 names, by commas; of "all", every one:
       {spec, numExperts, pool}. */ -}}
{{- define "expertmesh.ids" -}}
{{- $n := int .numExperts -}}
{{- $ids := list -}}
{{- if eq .spec "all" -}}
{{- $ids = until $n -}}
{{- else -}}
{{- $pool := .pool -}}
{{- $spec := .spec -}}
{{- range $part := splitList "," .spec -}}
{{- if not (regexMatch "^[0-9]+(-[0-9]+)?$" $part) -}}
{{- fail (printf "expertPools.%s.experts is '%s'; it must be all, or as in 0-15,20" $pool $spec) -}}
{{- end -}}
{{- $ends := splitList "-" $part -}}
{{- $first := int (first $ends) -}}
{{- $last := int (last $ends) -}}
{{- if or (gt $first $last) (ge $last $n) -}}
{{- fail (printf "expertPools.%s.experts: %s is not within 0-%d, the experts of model.numExperts" $pool $part (sub $n 1)) -}}
{{- end -}}
{{- range untilStep $first (int (add $last 1)) 1 -}}
{{- if has . $ids -}}
{{- fail (printf "expertPools.%s.experts names expert %d twice" $pool .) -}}
{{- end -}}
{{- $ids = append $ids . -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- join "," $ids -}}
{{- end -}}

{{- /* The mesh file (protos/expertmesh/mesh/v1/mesh.proto). */ -}}
{{- define "expertmesh.meshFile" -}}
{{- $root := . -}}
{{- $pools := list -}}
{{- range $name := include "expertmesh.poolNames" . | splitList "," -}}
{{- $pool := include "expertmesh.pool" (dict "root" $root "name" $name) | fromYaml -}}
{{- $entry := dict "name" $name "weight" (float64 $pool.weight) "target" (printf "dns:///%s:50052" (include "expertmesh.host" (dict "root" $root "name" $name))) -}}
{{- if $pool.experts -}}
{{- $slots := ternary (printf "0-%d" (sub (int $root.Values.model.numExperts) 1)) $pool.experts (eq $pool.experts "all") -}}
{{- $_ := set $entry "fixed" (dict "slots" $slots) -}}
{{- else -}}
{{- $_ := set $entry "managed" (dict) -}}
{{- end -}}
{{- if ne $pool.autoscaling.mode "none" -}}
{{- $_ := set $entry "minReplicas" (int $pool.autoscaling.minReplicas) -}}
{{- $_ := set $entry "maxReplicas" (int $pool.autoscaling.maxReplicas) -}}
{{- end -}}
{{- $pools = append $pools $entry -}}
{{- end -}}
{{- dict "pools" $pools | toPrettyJson -}}
{{- end -}}

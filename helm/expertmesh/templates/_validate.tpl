{{- /* Ends rendering with one sentence where values make no mesh. */ -}}
{{- define "expertmesh.validate" -}}
{{- $root := . -}}
{{- $names := include "expertmesh.poolNames" . | splitList "," -}}
{{- if eq (first $names) "" -}}
{{- fail "expertPools is empty; at least one pool must hold the model's experts" -}}
{{- end -}}
{{- $sources := list -}}
{{- range $kind, $source := .Values.model.source -}}
{{- if and $source (or $source.claimName $source.path $source.reference) -}}{{- $sources = append $sources $kind -}}{{- end -}}
{{- end -}}
{{- if ne (len $sources) 1 -}}
{{- fail (printf "model.source must be exactly one of pvc, hostPath and image, and is %s" (ternary "none" (join " and " $sources) (empty $sources))) -}}
{{- end -}}
{{- $covered := list -}}
{{- range $name := $names -}}
{{- if not (regexMatch "^[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?$" $name) -}}
{{- fail (printf "expertPools.%s: a pool's name is 1 to 22 of a-z, 0-9 and -, and begins and ends with a letter or digit" $name) -}}
{{- end -}}
{{- if has $name (list "router" "admin" "router-peers" "control" "metrics" "mesh") -}}
{{- fail (printf "expertPools.%s: the name is taken by a Service of the chart" $name) -}}
{{- end -}}
{{- $pool := include "expertmesh.pool" (dict "root" $root "name" $name) | fromYaml -}}
{{- if and $pool.experts $pool.memoryBudget -}}
{{- fail (printf "expertPools.%s has both experts and memoryBudget; a pool is either fixed or managed" $name) -}}
{{- end -}}
{{- if not (or $pool.experts $pool.memoryBudget) -}}
{{- fail (printf "expertPools.%s has neither experts (a fixed pool) nor memoryBudget (a managed one)" $name) -}}
{{- end -}}
{{- if $pool.experts -}}
{{- $ids := include "expertmesh.ids" (dict "spec" $pool.experts "numExperts" $root.Values.model.numExperts "pool" $name) -}}
{{- $covered = concat $covered (splitList "," $ids) -}}
{{- end -}}
{{- $scaling := $pool.autoscaling -}}
{{- if not (has (toString $scaling.mode) (list "none" "hpa" "keda")) -}}
{{- fail (printf "expertPools.%s.autoscaling.mode is %v; it must be exactly one of none, hpa and keda" $name $scaling.mode) -}}
{{- end -}}
{{- if and (ne $scaling.mode "none") (hasKey (index $root.Values.expertPools $name) "replicas") -}}
{{- fail (printf "expertPools.%s has both replicas and autoscaling.mode %s; an autoscaler owns the number of replicas" $name $scaling.mode) -}}
{{- end -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- fail (printf "expertPools.%s.autoscaling: minReplicas %d is above maxReplicas %d" $name (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq $scaling.mode "keda") (eq $scaling.keda.trigger "prometheus") (not $scaling.keda.prometheusAddress) -}}
{{- fail (printf "expertPools.%s.autoscaling.keda: trigger prometheus needs prometheusAddress" $name) -}}
{{- end -}}
{{- end -}}
{{- $missing := list -}}
{{- range until (int .Values.model.numExperts) -}}
{{- if not (has (toString .) $covered) -}}{{- $missing = append $missing . -}}{{- end -}}
{{- end -}}
{{- if $missing -}}
{{- fail (printf "no fixed pool of expertPools holds expert%s %s of model.numExperts %d; requests that need %s would fail" (ternary "" "s" (eq (len $missing) 1)) (join ", " $missing) (int .Values.model.numExperts) (ternary "it" "them" (eq (len $missing) 1))) -}}
{{- end -}}
{{- if and .Values.mtls.enabled (eq .Values.mtls.source "secret") (not .Values.mtls.secretName) -}}
{{- fail "mtls.source secret needs mtls.secretName" -}}
{{- end -}}
{{- if and .Values.mtls.enabled (eq .Values.mtls.source "certManager") (not .Values.mtls.issuerRef.name) -}}
{{- fail "mtls.source certManager needs mtls.issuerRef.name" -}}
{{- end -}}
{{- with .Values.router.client -}}
{{- if and (or .verifyClients .tokensSecretName) (not .tlsSecretName) -}}
{{- fail (printf "router.client.%s needs router.client.tlsSecretName" (ternary "tokensSecretName" "verifyClients" (not (empty .tokensSecretName)))) -}}
{{- end -}}
{{- end -}}
{{- end -}}

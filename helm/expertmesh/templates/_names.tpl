{{- define "expertmesh.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "expertmesh.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
expertmesh.io/pool: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "expertmesh.labels" -}}
{{ include "expertmesh.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- /* A Service's name within the cluster: {root, name}. Certificates are for it. */ -}}
{{- define "expertmesh.host" -}}
{{- printf "%s-%s.%s.svc" (include "expertmesh.fullname" .root) .name .root.Release.Namespace -}}
{{- end -}}

{{- define "expertmesh.image" -}}
{{- $name := index .root.Values.image .kind -}}
{{- with .root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- define "expertmesh.meshSecret" -}}
{{- if eq .Values.mtls.source "secret" -}}
{{- .Values.mtls.secretName -}}
{{- else -}}
{{- printf "%s-mesh-tls" (include "expertmesh.fullname" .) -}}
{{- end -}}
{{- end -}}

{{- /* The names that the mesh's certificate is for, by commas. */ -}}
{{- define "expertmesh.meshNames" -}}
{{- $root := . -}}
{{- $names := list -}}
{{- range $name := concat (list "router-peers" "admin") (include "expertmesh.poolNames" . | splitList ",") -}}
{{- $names = append $names (include "expertmesh.host" (dict "root" $root "name" $name)) -}}
{{- end -}}
{{- join "," $names -}}
{{- end -}}

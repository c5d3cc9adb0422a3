{{- /* What all of our pods have: {root, role, pool}. */ -}}
{{- define "expertmesh.podCommon" -}}
serviceAccountName: {{ include "expertmesh.fullname" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .role.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .role.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .role.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Kubelets ask without TLS, so health has a port of its own. "live" depends
       on no other service. */ -}}
{{- define "expertmesh.probes" -}}
startupProbe:
  grpc: {port: 50054, service: live}
  periodSeconds: 5
  failureThreshold: 360  # weights take up to half an hour
livenessProbe:
  grpc: {port: 50054, service: live}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  grpc: {port: 50054}
  periodSeconds: 5
  failureThreshold: 2
{{- end -}}

{{- /* Addresses leave DNS and proxies some seconds after a pod begins to end, and
       clients' connections to a router some more: {sleep}. */ -}}
{{- define "expertmesh.preStop" -}}
{{- with .sleep -}}
lifecycle: {preStop: {sleep: {seconds: {{ . }}}}}
{{- end -}}
{{- end -}}

{{- define "expertmesh.routerPreStopSeconds" -}}
{{- add 10 (div (mul (int .Values.router.connectionAgeSeconds) 12) 10) -}}
{{- end -}}

{{- define "expertmesh.meshTlsArgs" -}}
{{- if .Values.mtls.enabled }}
- --mesh-tls-cert=/etc/expertmesh/mesh-tls/tls.crt
- --mesh-tls-key=/etc/expertmesh/mesh-tls/tls.key
- --mesh-tls-ca=/etc/expertmesh/mesh-tls/ca.crt
{{- end }}
{{- end -}}

{{- define "expertmesh.meshTlsMount" -}}
{{- if .Values.mtls.enabled }}
- {name: mesh-tls, mountPath: /etc/expertmesh/mesh-tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "expertmesh.meshTlsVolume" -}}
{{- if .Values.mtls.enabled }}
- name: mesh-tls
  secret: {secretName: {{ include "expertmesh.meshSecret" . }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{- define "expertmesh.modelVolume" -}}
{{- with .Values.model.source -}}
- name: model
  {{- if (.image).reference }}
  emptyDir: {}
  {{- else if (.hostPath).path }}
  hostPath: {path: {{ (.hostPath).path | quote }}, type: Directory}
  {{- else }}
  persistentVolumeClaim: {claimName: {{ .pvc.claimName | quote }}, readOnly: true}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "expertmesh.modelMount" -}}
- name: model
  mountPath: /model
  readOnly: true
  {{- with ((.Values.model.source).pvc).path }}
  subPath: {{ . | quote }}
  {{- end }}
{{- end -}}

{{- /* Copies a checkpoint out of an image, which needs cp. */ -}}
{{- define "expertmesh.modelInit" -}}
{{- with .Values.model.source.image }}
{{- if .reference }}
initContainers:
  - name: model
    image: {{ .reference | quote }}
    imagePullPolicy: {{ $.Values.image.pullPolicy }}
    command: [cp, -r, {{ printf "%s/." (.path | default "/model") | quote }}, /target/]
    securityContext: {{- toYaml $.Values.securityContext | nindent 6 }}
    volumeMounts: [{name: model, mountPath: /target}]
{{- end }}
{{- end }}
{{- end -}}

{{- /* Of routers and expert services: logs, series and spans. */ -}}
{{- define "expertmesh.observabilityArgs" -}}
- --log-format=json
- --log-level={{ .Values.logLevel }}
- --metrics-expert-detail={{ .Values.monitoring.expertDetail }}
{{- with .Values.tracing.file }}
- --trace-file={{ . }}
{{- end }}
{{- end -}}

{{- /* The chart's flags {own}, but for those given otherwise in {extra}. */ -}}
{{- define "expertmesh.args" -}}
{{- $given := list -}}
{{- range .extra }}{{- $given = append $given (splitList "=" . | first) }}{{- end -}}
{{- range fromYamlArray .own }}
{{- if not (has (splitList "=" . | first) $given) }}
- {{ . | quote }}
{{- end }}
{{- end }}
{{- range .extra }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{- /* As routerPod. */ -}}
{{- define "expertmesh.routerArgs" -}}
{{- $v := .root.Values -}}
{{- /* Control has no clients, and so not their secrets. */ -}}
{{- $client := ternary dict $v.router.client (eq .component "control") -}}
- --model=/model
- --mesh-config=/etc/expertmesh/mesh/mesh.json
- --listen={{ ternary "127.0.0.1" "0.0.0.0" (eq .component "control") }}:50051
- --admin-listen=0.0.0.0:50053
- --health-listen=0.0.0.0:50054
- --metrics-listen=0.0.0.0:9090
- --client-connection-age={{ $v.router.connectionAgeSeconds }}
- --drain-timeout={{ $v.router.drainSeconds }}
{{- /* Autoscalers wait before they take away; twice is too long. */}}
- --scale-down-window=60
{{- include "expertmesh.observabilityArgs" .root | nindent 0 }}
{{- if $v.tracing.file }}
- --trace-sample={{ $v.tracing.sampleRatio }}
{{- end }}
{{- include "expertmesh.meshTlsArgs" .root | nindent 0 }}
{{- with $client }}
{{- if .tlsSecretName }}
- --client-tls-cert=/etc/expertmesh/client-tls/tls.crt
- --client-tls-key=/etc/expertmesh/client-tls/tls.key
{{- end }}
{{- if .verifyClients }}
- --client-tls-ca=/etc/expertmesh/client-tls/ca.crt
{{- end }}
{{- if .tokensSecretName }}
- --client-tokens=/etc/expertmesh/client-tokens/tokens
{{- end }}
{{- end }}
{{- range .args }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{- /* An expert service's: {root, pool}. */ -}}
{{- define "expertmesh.expertArgs" -}}
{{- if eq .pool.weights "source" }}
- --model=/model
{{- else }}
- --weights-from={{ include "expertmesh.host" (dict "root" .root "name" "router-peers") }}:50053
- --weights-cache=/var/cache/expertmesh
{{- end }}
{{- if .pool.experts }}
- --experts={{ ternary (printf "0-%d" (sub (int .root.Values.model.numExperts) 1)) .pool.experts (eq .pool.experts "all") }}
{{- else }}
- --experts=none
- --memory-budget={{ .pool.memoryBudget }}
{{- end }}
- --device={{ .pool.device }}
- --expert-dtype={{ .pool.dtype }}
- --listen=0.0.0.0:50052
- --health-listen=0.0.0.0:50054
- --metrics-listen=0.0.0.0:9090
- --drain-timeout={{ .pool.drainSeconds }}
{{- include "expertmesh.observabilityArgs" .root | nindent 0 }}
{{- include "expertmesh.meshTlsArgs" .root | nindent 0 }}
{{- end -}}

{{- /* With which `expertmesh` in the pod reaches this router: {root, client}. */ -}}
{{- define "expertmesh.operatorsEnv" -}}
{{- if .root.Values.mtls.enabled }}
- {name: EXPERTMESH_ADMIN_TLS_CA, value: /etc/expertmesh/mesh-tls/ca.crt}
- {name: EXPERTMESH_ADMIN_TLS_CERT, value: /etc/expertmesh/mesh-tls/tls.crt}
- {name: EXPERTMESH_ADMIN_TLS_KEY, value: /etc/expertmesh/mesh-tls/tls.key}
- {name: EXPERTMESH_ADMIN_TLS_SERVER_NAME, value: {{ include "expertmesh.host" (dict "root" .root "name" "admin") }}}
{{- end }}
{{- if .client.tlsSecretName }}
- {name: EXPERTMESH_TLS_CA, value: /etc/expertmesh/client-tls/ca.crt}
- {name: EXPERTMESH_TLS_SERVER_NAME, value: {{ .client.serverName | default (include "expertmesh.host" (dict "root" .root "name" "router")) }}}
{{- end }}
{{- if .client.tokensSecretName }}
- {name: EXPERTMESH_TOKEN_FILE, value: /etc/expertmesh/client-tokens/tokens}
{{- end }}
{{- end -}}

{{- /* A router's pod: {root, component, role, args}. */ -}}
{{- define "expertmesh.routerPod" -}}
{{- $v := .root.Values -}}
{{- $client := ternary dict $v.router.client (eq .component "control") -}}
{{ include "expertmesh.podCommon" . }}
terminationGracePeriodSeconds: {{ add (include "expertmesh.routerPreStopSeconds" .root | int) $v.router.drainSeconds 15 }}
{{- include "expertmesh.modelInit" .root }}
containers:
  - name: router
    image: {{ include "expertmesh.image" (dict "root" .root "kind" "router") | quote }}
    imagePullPolicy: {{ $v.image.pullPolicy }}
    args: {{- include "expertmesh.args" (dict "own" (include "expertmesh.routerArgs" .) "extra" .role.extraArgs) | nindent 6 }}
    {{- with include "expertmesh.operatorsEnv" (dict "root" .root "client" $client) | trim }}
    env: {{- . | nindent 6 }}
    {{- end }}
    ports:
      - {name: grpc, containerPort: 50051}
      - {name: admin, containerPort: 50053}
      - {name: health, containerPort: 50054}
      - {name: metrics, containerPort: 9090}
      {{- if eq .component "control" }}
      - {name: scaler, containerPort: 50055}
      {{- end }}
    {{- include "expertmesh.probes" . | nindent 4 }}
    {{- include "expertmesh.preStop" (dict "sleep" (ternary 0 (include "expertmesh.routerPreStopSeconds" .root | int) (eq .component "control"))) | nindent 4 }}
    securityContext: {{- toYaml $v.securityContext | nindent 6 }}
    resources: {{- toYaml .role.resources | nindent 6 }}
    volumeMounts:
      {{- include "expertmesh.modelMount" .root | nindent 6 }}
      - {name: mesh, mountPath: /etc/expertmesh/mesh, readOnly: true}
      - {name: tmp, mountPath: /tmp}
      {{- include "expertmesh.meshTlsMount" .root | nindent 6 }}
      {{- if $client.tlsSecretName }}
      - {name: client-tls, mountPath: /etc/expertmesh/client-tls, readOnly: true}
      {{- end }}
      {{- if $client.tokensSecretName }}
      - {name: client-tokens, mountPath: /etc/expertmesh/client-tokens, readOnly: true}
      {{- end }}
volumes:
  {{- include "expertmesh.modelVolume" .root | nindent 2 }}
  - name: mesh
    configMap: {name: {{ include "expertmesh.fullname" .root }}-mesh}
  - name: tmp
    emptyDir: {}
  {{- include "expertmesh.meshTlsVolume" .root | nindent 2 }}
  {{- with $client.tlsSecretName }}
  - name: client-tls
    secret: {secretName: {{ . }}, defaultMode: 0440}
  {{- end }}
  {{- with $client.tokensSecretName }}
  - name: client-tokens
    secret: {secretName: {{ . }}, defaultMode: 0440}
  {{- end }}
{{- end -}}

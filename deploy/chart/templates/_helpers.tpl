{{/* A cluster has one driver of this name, so it has one installation. Names are fixed and do not contain the release. */}}

{{- define "oras-csi.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "oras-csi.selector" . }}
{{- end }}

{{- define "oras-csi.selector" -}}
app.kubernetes.io/name: oras-csi
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "oras-csi.image" -}}
{{- if not .Values.image.repository }}
{{- fail "image.repository is not set: build the image with 'make image', push it to a registry that your nodes can reach, and set image.repository and image.tag to it (the chart has no default image)" }}
{{- end -}}
{{ .Values.image.repository }}
{{- if and .Values.image.digest (not .Values.image.tag) -}}
@{{ .Values.image.digest }}
{{- else -}}
:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "oras-csi.certs-dir" -}}
/etc/oras-csi/certs.d
{{- end }}

{{/* The files of each registry, {host: {file: text}}, or nothing. The omitted keys apply to all registries. */}}
{{- define "oras-csi.registries" -}}
{{- $all := dict }}
{{- range $host, $value := omit .Values.registries "dockerConfigSecret" "credentialHelpers" "credentialProviders" }}
{{- $_ := set $all $host (kindIs "string" $value | ternary (dict "hosts.toml" $value) $value) }}
{{- end }}
{{- with $all }}
{{- toJson . }}
{{- end }}
{{- end }}

{{/* The next three serve the webhook and the driver: {Values, programs: whether it runs credential programs of the node}. */}}

{{- define "oras-csi.registry-args" -}}
{{- if include "oras-csi.registries" . }}
- --certs-dir={{ include "oras-csi.certs-dir" . }}
{{- end }}
{{- if .Values.registries.dockerConfigSecret }}
- --docker-config=/etc/oras-csi/docker/.dockerconfigjson
{{- end }}
{{- if .programs }}
{{- if .Values.registries.credentialHelpers.hostPath }}
- --credential-helper-dir=/etc/oras-csi/credential-helpers
{{- end }}
{{- if .Values.registries.credentialProviders.config }}
- --credential-provider-config=/etc/oras-csi/credential-providers.yaml
- --credential-provider-bin-dir=/etc/oras-csi/credential-providers
{{- end }}
{{- end }}
{{- end }}

{{- define "oras-csi.registry-mounts" -}}
{{- if include "oras-csi.registries" . }}
- name: registries
  mountPath: {{ include "oras-csi.certs-dir" . }}
  readOnly: true
{{- end }}
{{- if .Values.registries.dockerConfigSecret }}
# The directory, not the file in it: a file mounted by subPath would never be updated.
- name: docker-config
  mountPath: /etc/oras-csi/docker
  readOnly: true
{{- end }}
{{- if .programs }}
{{- if .Values.registries.credentialHelpers.hostPath }}
- name: credential-helpers
  mountPath: /etc/oras-csi/credential-helpers
  readOnly: true
{{- end }}
{{- if .Values.registries.credentialProviders.config }}
- name: credential-provider-config
  mountPath: /etc/oras-csi/credential-providers.yaml
  readOnly: true
- name: credential-providers
  mountPath: /etc/oras-csi/credential-providers
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{- define "oras-csi.registry-volumes" -}}
{{- if include "oras-csi.registries" . }}
{{- /* A key of a ConfigMap holds no slash; a file's name has no underscore, so the last one divides. */}}
- name: registries
  configMap:
    name: oras-csi-registries
    items:
    {{- range $host, $files := include "oras-csi.registries" . | fromJson }}
    {{- range $file, $_ := $files }}
    - key: {{ $host }}_{{ $file }}
      path: {{ $host }}/{{ $file }}
    {{- end }}
    {{- end }}
{{- end }}
{{- with .Values.registries.dockerConfigSecret }}
- name: docker-config
  secret:
    secretName: {{ . | quote }}
    # The key is named so that a Secret of another type fails with an event of the pod.
    items: [{key: .dockerconfigjson, path: .dockerconfigjson}]
{{- end }}
{{- if .programs }}
{{- with .Values.registries.credentialHelpers.hostPath }}
- name: credential-helpers
  hostPath: {path: {{ . }}, type: Directory}
{{- end }}
{{- with .Values.registries.credentialProviders }}
{{- if .config }}
- name: credential-provider-config
  hostPath: {path: {{ .config }}, type: File}
- name: credential-providers
  hostPath: {path: {{ .binDir }}, type: Directory}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "oras-csi.driver-health" -}}
path: /healthz
port: health
{{- if .Values.driver.hostNetwork }}
host: 127.0.0.1
{{- end }}
{{- end }}

{{- define "oras-csi.startup-taint" -}}
oras.land/agent-not-ready
{{- end }}

{{/* The tolerations of a component, with one for the startup taint: {Values, tolerations}. */}}
{{- define "oras-csi.tolerations" -}}
{{- $startup := list (dict "key" (include "oras-csi.startup-taint" .) "operator" "Exists") }}
{{- with .Values.driver.startupTaint | ternary (concat (.tolerations | default list) $startup) .tolerations }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{- /* The environment of a container that sends traces. */}}
{{- define "oras-csi.trace-environment" -}}
{{- with .Values.traces }}
{{- if .endpoint -}}
- name: HOST_IP
  valueFrom: {fieldRef: {fieldPath: status.hostIP}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
{{- if not (kindIs "invalid" .ratio) }}
- name: ORAS_CSI_TRACE_RATIO
  value: {{ .ratio | quote }}
{{- end }}
{{- with .headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: headers}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

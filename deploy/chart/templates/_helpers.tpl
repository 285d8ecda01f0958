{{/* A cluster has one driver of one name, hence one installation: names are fixed, not the release's. */}}

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
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "oras-csi.certs-dir" -}}
/etc/oras-csi/certs.d
{{- end }}

{{/* Each registry's files: {host: {file: text}}. */}}
{{- define "oras-csi.registries" -}}
{{- $all := dict }}
{{- range $host, $value := .Values.registries }}
{{- $_ := set $all $host (kindIs "string" $value | ternary (dict "hosts.toml" $value) $value) }}
{{- end }}
{{- toJson $all }}
{{- end }}

{{/* A key of a ConfigMap holds no slash; a file's name has no underscore, so the last one divides. */}}
{{- define "oras-csi.registries-volume" -}}
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

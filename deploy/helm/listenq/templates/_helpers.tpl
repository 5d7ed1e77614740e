{{/* Names, labels and places that several templates share. */}}

{{- define "listenq.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "listenq.fullname" -}}
{{- $name := include "listenq.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "listenq.selectorLabels" -}}
app.kubernetes.io/name: {{ include "listenq.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "listenq.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "listenq.selectorLabels" . }}
app.kubernetes.io/component: metrics
app.kubernetes.io/part-of: listenq
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "listenq.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "listenq.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "listenq.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end }}
{{- .Values.image.repository }}
{{- with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* A probe. With a web configuration every request may need a password, so the probe only connects. */}}
{{- define "listenq.probe" -}}
{{- if .root.Values.webConfig.existingSecret -}}
tcpSocket:
  port: {{ .root.Values.portName }}
{{- else -}}
httpGet:
  path: {{ .path }}
  port: {{ .root.Values.portName }}
{{- end }}
{{ toYaml .probe }}
{{- end }}

{{/* The directories of the node that are mounted read-only, as a list of name, hostPath, mountPath, mountPropagation. */}}
{{- define "listenq.hostMounts" -}}
{{- if .Values.hostPodLogsMount.enabled }}
- name: pod-logs
  hostPath: /var/log/pods
  mountPath: /host/var/log/pods
- name: container-logs
  hostPath: /var/log/containers
  mountPath: /host/var/log/containers
{{- end }}
{{- if .Values.hostCgroupMount.enabled }}
- name: cgroup
  hostPath: /sys/fs/cgroup
  mountPath: /host/sys/fs/cgroup
{{- end }}
{{- with .Values.extraHostVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* An endpoint of a PodMonitor or ServiceMonitor: `job` is `listenq` for the alerts, and `node` the name of the node. */}}
{{- define "listenq.endpoint" -}}
port: {{ .root.Values.portName }}
path: {{ .monitor.path }}
scheme: {{ .monitor.scheme }}
{{- with .monitor.interval }}
interval: {{ . }}
{{- end }}
{{- with .monitor.scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- with .monitor.basicAuth }}
basicAuth:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .monitor.authorization }}
authorization:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .monitor.tlsConfig }}
tlsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
relabelings:
  - action: replace
    targetLabel: job
    replacement: listenq
  - action: replace
    sourceLabels: [__meta_kubernetes_pod_node_name]
    targetLabel: node
  - action: labeldrop
    regex: pod
  {{- with .monitor.relabelings }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .monitor.metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

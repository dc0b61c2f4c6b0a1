{{/* Where a pod may run. Called with (dict "root" $ "part" .Values.gateway). */}}
{{- define "siltstone.placement" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .part.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A size such as 512Mi as bytes. */}}
{{- define "siltstone.bytes" -}}
{{- $number := regexFind "^[0-9]+" . | int64 }}
{{- $unit := regexFind "[A-Za-z]*$" . }}
{{- mul $number (index (dict "" 1 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776) $unit) }}
{{- end }}

{{/*
The template of a Ray pod. Called with (dict "root" $ "name" "ray-head" "component" "ray" "part" .Values.ray.head). The pods of
one cluster hold the same configuration, home and Secrets: a shard runs on any of them.
*/}}
{{- define "siltstone.rayPod" -}}
{{- $root := .root }}
{{- $gpus := .part.gpus | default 0 | int }}
{{- $image := ternary .root.Values.gpuImage .root.Values.image (gt $gpus 0) }}
{{- $resources := deepCopy .part.resources }}
{{- if gt $gpus 0 }}
{{- range $kind := list "requests" "limits" }}
{{- $_ := set $resources $kind (set (index $resources $kind | default dict) "nvidia.com/gpu" (toString $gpus)) }}
{{- end }}
{{- end }}
metadata:
  labels:
    {{- include "siltstone.labels" (dict "root" .root "component" .component) | nindent 4 }}
  annotations:
    {{- include "siltstone.checksum" .root | nindent 4 }}
spec:
  serviceAccountName: {{ include "siltstone.serviceAccountName" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: 60
  {{- include "siltstone.placement" . | nindent 2 }}
  securityContext:
    {{- include "siltstone.podSecurity" .root | nindent 4 }}
  containers:
    - name: {{ .name }}
      image: {{ include "siltstone.image" (dict "root" .root "image" $image) | quote }}
      imagePullPolicy: {{ $image.pullPolicy }}
      env:
        {{- include "siltstone.env" .root | nindent 8 }}
        {{- include "siltstone.rayEnv" .root | nindent 8 }}
      ports:
        {{- if eq .name "ray-head" }}
        - {name: gcs-server, containerPort: 6379, protocol: TCP}
        - {name: dashboard, containerPort: 8265, protocol: TCP}
        {{- end }}
        - {name: metrics, containerPort: 8080, protocol: TCP}
      securityContext:
        {{- include "siltstone.containerSecurity" .root | nindent 8 }}
      resources:
        {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        {{- include "siltstone.mounts" .root | nindent 8 }}
        - {name: shared-memory, mountPath: /dev/shm}
  volumes:
    {{- include "siltstone.volumes" .root | nindent 4 }}
    - name: shared-memory
      emptyDir: {medium: Memory, sizeLimit: {{ .part.sharedMemory }}}
{{- end }}

{{/* One group of Ray workers: a fixed number, as the number of shards is. */}}
{{- define "siltstone.rayGroup" -}}
- groupName: {{ .group }}
  replicas: {{ .part.replicas }}
  minReplicas: {{ .part.replicas }}
  maxReplicas: {{ .part.replicas }}
  rayStartParams: {}
  template:
    {{- include "siltstone.rayPod" (dict "root" .root "name" "ray-worker" "component" .component "part" .part) | nindent 4 }}
{{- end }}

{{- define "siltstone.rayHead" -}}
rayStartParams:
  # No work on the head: what it loses, the cluster loses.
  num-cpus: {{ .cpus | quote }}
  num-gpus: "0"
  dashboard-host: 0.0.0.0
template:
  {{- include "siltstone.rayPod" (dict "root" .root "name" "ray-head" "component" .component "part" .part) | nindent 2 }}
{{- end }}

{{- define "siltstone.rayAuth" -}}
mode: token
{{- with .Values.secrets.rayToken.existingSecret }}
secretName: {{ . }}
{{- end }}
{{- end }}

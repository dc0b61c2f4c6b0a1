{{- define "siltstone.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "siltstone.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "siltstone.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "siltstone.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Short: KubeRay puts words behind it, and the names of its Services and pods end at 63 too. */}}
{{- define "siltstone.rayName" -}}
{{- printf "%s-ray" (include "siltstone.fullname" . | trunc 36 | trimSuffix "-") }}
{{- end }}

{{- define "siltstone.sleepName" -}}
{{- printf "%s-sleep" (include "siltstone.fullname" . | trunc 30 | trimSuffix "-") }}
{{- end }}

{{- define "siltstone.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "siltstone.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "siltstone.homeClaim" -}}
{{- default (printf "%s-home" (include "siltstone.fullname" . | trunc 58 | trimSuffix "-")) .Values.home.existingClaim }}
{{- end }}

{{- define "siltstone.isCluster" -}}
{{- if eq .Values.mode "cluster" }}yes{{ end }}
{{- end }}

{{- define "siltstone.port" -}}
{{- dig "gateway" "port" 50550 .Values.config | int }}
{{- end }}

{{/* What selects pods never changes, so it is little. Called with (dict "root" $ "component" "gateway"). */}}
{{- define "siltstone.selector" -}}
app.kubernetes.io/name: {{ include "siltstone.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "siltstone.labels" -}}
{{ include "siltstone.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Called with (dict "root" $ "image" .Values.image). */}}
{{- define "siltstone.image" -}}
{{- $name := .image.repository }}
{{- with .image.registry }}{{ $name = printf "%s/%s" . $name }}{{ end }}
{{- if .image.digest }}
{{- printf "%s@%s" $name .image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion .image.tag) }}
{{- end }}
{{- end }}

{{- define "siltstone.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "siltstone.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* A Secret's mount and the names of the files in it. Called with the part of .Values.secrets. */}}
{{- define "siltstone.secretFiles" -}}
{{- $files := dict }}
{{- range $key, $file := dict "passwordKey" "password" "caKey" "ca.crt" "certKey" "tls.crt" "keyKey" "tls.key" "masterKeyKey" "master.key" "secretKeyKey" "secret.key" }}
{{- with index $.part $key }}{{ $_ := set $files . $file }}{{ end }}
{{- end }}
{{- toJson $files }}
{{- end }}

{{/* The mounted Secrets: a JSON object of folder name to part. */}}
{{- define "siltstone.mounted" -}}
{{- $found := dict }}
{{- $folders := dict "sealing" "sealing" }}
{{- if include "siltstone.isCluster" . }}
{{- $folders = dict "sealing" "sealing" "kafka" "kafka" "redis" "redis" "keyStore" "key-store" "objects" "objects" }}
{{- end }}
{{- range $part, $folder := $folders }}
{{- $secret := index $.Values.secrets $part }}
{{- if $secret.existingSecret }}{{ $_ := set $found $folder $secret }}{{ end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{- define "siltstone.volumes" -}}
- name: config
  configMap: {name: {{ include "siltstone.fullname" . }}}
- name: home
  persistentVolumeClaim: {claimName: {{ include "siltstone.homeClaim" . }}}
- name: tmp
  emptyDir: {}
{{- range $folder, $secret := include "siltstone.mounted" . | fromJson }}
- name: secret-{{ $folder }}
  secret:
    secretName: {{ $secret.existingSecret }}
    # Read by the group that fsGroup names, and by nobody else.
    defaultMode: 288
    items:
    {{- range $key, $file := include "siltstone.secretFiles" (dict "part" $secret) | fromJson }}
    - {key: {{ $key | quote }}, path: {{ $file | quote }}}
    {{- end }}
{{- end }}
{{- end }}

{{- define "siltstone.mounts" -}}
- {name: config, mountPath: /etc/siltstone, readOnly: true}
- {name: home, mountPath: /var/lib/siltstone}
- {name: tmp, mountPath: /tmp}
{{- range $folder, $secret := include "siltstone.mounted" . | fromJson }}
- {name: secret-{{ $folder }}, mountPath: /etc/siltstone-secrets/{{ $folder }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "siltstone.env" -}}
- {name: SILTSTONE_HOME, value: /var/lib/siltstone}
# The root is read-only: what libraries cache goes where it is forgotten with the pod.
- {name: HOME, value: /tmp}
- {name: HF_HUB_OFFLINE, value: "1"}
- {name: MLFLOW_DISABLE_TELEMETRY, value: "true"}
{{- with .Values.secrets.mlflow }}
{{- if .existingSecret }}
{{- range $variable, $key := dict "MLFLOW_TRACKING_USERNAME" .usernameKey "MLFLOW_TRACKING_PASSWORD" .passwordKey }}
{{- if $key }}
- name: {{ $variable }}
  valueFrom: {secretKeyRef: {name: {{ $.Values.secrets.mlflow.existingSecret }}, key: {{ $key | quote }}}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "siltstone.rayEnv" -}}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
{{- end }}

{{/* For a Ray node that KubeRay does not know: KubeRay gives its own pods the token itself. */}}
{{- define "siltstone.rayTokenEnv" -}}
- {name: RAY_AUTH_MODE, value: token}
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      # KubeRay names the Secret it makes after the cluster.
      name: {{ default (include "siltstone.rayName" .) .Values.secrets.rayToken.existingSecret }}
      key: auth_token
{{- end }}

{{- define "siltstone.checksum" -}}
checksum/config: {{ include "siltstone.toml" . | sha256sum }}
{{- end }}

{{/* Refuses what no schema can: what of several values belongs together. */}}
{{- define "siltstone.check" -}}
{{- if include "siltstone.isCluster" . }}
{{- $secrets := .Values.secrets }}
{{- if not (or $secrets.sealing.existingSecret (dig "sealing" "master_command" list .Values.config)) }}
{{- fail "secrets.sealing.existingSecret: a cluster needs a master key, since what is on a topic is forgotten by its key alone" }}
{{- end }}
{{- range $part, $name := dict "kafka" "brokers" "redis" "address" "key_store" "address" }}
{{- if not (dig $part $name "" $.Values.config) }}
{{- fail (printf "config.%s.%s: a cluster needs to be told where that is" $part $name) }}
{{- end }}
{{- end }}
{{- range $group, $settings := .Values.ray.workerGroups }}
{{- if and $settings.enabled $settings.gpus (not $.Values.gpuImage.repository) }}
{{- fail (printf "gpuImage.repository: the worker group %s asks for GPUs" $group) }}
{{- end }}
{{- end }}
{{- if not (include "siltstone.enabledGroups" . | fromJson) }}
{{- fail "ray.workerGroups: enable one at least, or there is no place for a shard" }}
{{- end }}
{{- if and .Values.ray.gcsFaultTolerance.enabled (not .Values.ray.gcsFaultTolerance.address) }}
{{- fail "ray.gcsFaultTolerance.address: say which Redis keeps Ray's own state" }}
{{- end }}
{{- end }}
{{- $drain := dig "gateway" "drain_budget_s" 10 .Values.config | float64 }}
{{- if include "siltstone.isCluster" . }}
{{- /* Shards commit their round and let go, and then end. */}}
{{- $drain = addf $drain (mulf 2 (dig "cluster" "release_budget_s" 10 .Values.config | float64)) }}
{{- end }}
{{- if le (.Values.gateway.terminationGracePeriodSeconds | float64) (addf .Values.gateway.preStopSeconds $drain) }}
{{- fail "gateway.terminationGracePeriodSeconds: expected more than gateway.preStopSeconds, config.gateway.drain_budget_s and, in a cluster, twice config.cluster.release_budget_s together" }}
{{- end }}
{{- end }}

{{- define "siltstone.enabledGroups" -}}
{{- $enabled := dict }}
{{- range $name, $group := .Values.ray.workerGroups }}
{{- if $group.enabled }}{{ $_ := set $enabled $name $group }}{{ end }}
{{- end }}
{{- toJson $enabled }}
{{- end }}

{{/* The night of a cluster, as the spec of a RayJob. */}}
{{- define "siltstone.rayJob" -}}
{{- $workers := .Values.sleep.workers }}
{{- $sets := list "sleep.train.trainer=ray" "sleep.train.ray_address=auto" (printf "sleep.train.num_workers=%d" ($workers.replicas | int)) (printf "sleep.train.uses_gpu=%t" (gt ($workers.gpus | int) 0)) }}
entrypoint: siltstone --config /etc/siltstone/siltstone.toml{{ range $sets }} --set {{ . }}{{ end }} sleep run --seed {{ .Values.sleep.seed | int }}
submissionMode: {{ .Values.sleep.submissionMode }}
# The night belongs to the head: its driver holds one core, Ray's workers train.
entrypointNumCpus: 1
shutdownAfterJobFinishes: true
ttlSecondsAfterFinished: {{ .Values.sleep.ttlSecondsAfterFinished }}
activeDeadlineSeconds: {{ .Values.sleep.activeDeadlineSeconds }}
backoffLimit: {{ .Values.sleep.backoffLimit }}
{{- if eq .Values.sleep.submissionMode "K8sJobMode" }}
submitterPodTemplate:
  metadata:
    labels:
      {{- include "siltstone.labels" (dict "root" . "component" "sleep") | nindent 6 }}
  spec:
    restartPolicy: Never
    serviceAccountName: {{ include "siltstone.serviceAccountName" . }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    {{- with .Values.imagePullSecrets }}
    imagePullSecrets:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- include "siltstone.podSecurity" . | nindent 6 }}
    containers:
      - name: ray-job-submitter
        image: {{ include "siltstone.image" (dict "root" . "image" .Values.image) | quote }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        env:
          - {name: HOME, value: /tmp}
        securityContext:
          {{- include "siltstone.containerSecurity" . | nindent 10 }}
        resources:
          requests: {cpu: 100m, memory: 512Mi}
          limits: {memory: 512Mi}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
    volumes:
      - {name: tmp, emptyDir: {}}
{{- end }}
rayClusterSpec:
  rayVersion: {{ .Values.ray.version | quote }}
  enableInTreeAutoscaling: false
  authOptions:
    {{- include "siltstone.rayAuth" . | nindent 4 }}
  headGroupSpec:
    {{- include "siltstone.rayHead" (dict "root" . "component" "sleep" "part" .Values.sleep.head "cpus" 2) | nindent 4 }}
  workerGroupSpecs:
    {{- include "siltstone.rayGroup" (dict "root" . "component" "sleep" "group" "trainers" "part" $workers) | nindent 4 }}
{{- end }}

{{/* The night of one pod: the server runs it, and this looks on. As the spec of a Job. */}}
{{- define "siltstone.job" -}}
backoffLimit: {{ .Values.sleep.backoffLimit }}
ttlSecondsAfterFinished: {{ .Values.sleep.ttlSecondsAfterFinished }}
activeDeadlineSeconds: {{ .Values.sleep.activeDeadlineSeconds }}
template:
  metadata:
    labels:
      {{- include "siltstone.labels" (dict "root" . "component" "sleep") | nindent 6 }}
  spec:
    restartPolicy: Never
    serviceAccountName: {{ include "siltstone.serviceAccountName" . }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    {{- with .Values.imagePullSecrets }}
    imagePullSecrets:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- include "siltstone.podSecurity" . | nindent 6 }}
    containers:
      - name: sleep
        image: {{ include "siltstone.image" (dict "root" . "image" .Values.image) | quote }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        command: [siltstone, --home, /tmp/home]
        args:
          - sleep
          - run
          - --seed={{ .Values.sleep.seed | int }}
          - --address={{ include "siltstone.fullname" . }}:{{ include "siltstone.port" . }}
        env:
          - {name: HOME, value: /tmp}
        securityContext:
          {{- include "siltstone.containerSecurity" . | nindent 10 }}
        resources:
          requests: {cpu: 100m, memory: 512Mi}
          limits: {memory: 512Mi}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
    volumes:
      - {name: tmp, emptyDir: {}}
{{- end }}

{{/*
siltstone.toml from values. Helm's own toToml writes every number as a float, and a port is none. JSON's texts, numbers, true
and false are TOML's too; what is null is left out, as TOML has none.
*/}}
{{- define "siltstone.toml" -}}
{{- $config := deepCopy .Values.config }}
{{- $own := dict "gateway" (dict "host" "0.0.0.0" "port" (include "siltstone.port" . | int)) }}
{{- $mounted := include "siltstone.mounted" . | fromJson }}
{{- $names := dict "password" "password_file" "ca.crt" "ca_file" "tls.crt" "cert_file" "tls.key" "key_file" "master.key" "master_key_file" "secret.key" "secret_key_file" }}
{{- range $folder, $secret := $mounted }}
{{- $part := replace "-" "_" $folder }}
{{- range $key, $file := include "siltstone.secretFiles" (dict "part" $secret) | fromJson }}
{{- $_ := set $own $part (set (index $own $part | default dict) (index $names $file) (printf "/etc/siltstone-secrets/%s/%s" $folder $file)) }}
{{- end }}
{{- end }}
{{- if include "siltstone.isCluster" . }}
{{- $_ := set $own "cluster" (dict "is_on" true "ray_address" "auto") }}
{{- end }}
{{- include "siltstone.tomlTable" (dict "table" (mergeOverwrite $config $own) "path" "") | trim }}
{{- end }}

{{- define "siltstone.tomlTable" -}}
{{- $path := .path }}
{{- $lines := list }}
{{- $tables := list }}
{{- range $name, $value := .table }}
{{- if kindIs "map" $value }}
{{- $tables = append $tables $name }}
{{- else if not (kindIs "invalid" $value) }}
{{- $lines = append $lines (printf "%s = %s" (include "siltstone.tomlKey" $name) (include "siltstone.tomlValue" $value)) }}
{{- end }}
{{- end }}
{{- if and $path (or $lines (not $tables)) }}
[{{ $path }}]
{{- end }}
{{- range $lines }}
{{ . }}
{{- end }}
{{- range $tables }}
{{- $key := include "siltstone.tomlKey" . }}
{{ include "siltstone.tomlTable" (dict "table" (index $.table .) "path" (ternary $key (printf "%s.%s" $path $key) (eq $path ""))) }}
{{- end }}
{{- end }}

{{- define "siltstone.tomlKey" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{- define "siltstone.tomlValue" -}}
{{- if kindIs "slice" . }}
{{- $items := list }}
{{- range . }}{{ $items = append $items (include "siltstone.tomlValue" .) }}{{ end }}
{{- printf "[%s]" (join ", " $items) }}
{{- else if kindIs "map" . }}
{{- $items := list }}
{{- range $name, $value := . }}
{{- if not (kindIs "invalid" $value) }}
{{- $items = append $items (printf "%s = %s" (include "siltstone.tomlKey" $name) (include "siltstone.tomlValue" $value)) }}
{{- end }}
{{- end }}
{{- printf "{%s}" (join ", " $items) }}
{{- else }}
{{- toJson . }}
{{- end }}
{{- end }}

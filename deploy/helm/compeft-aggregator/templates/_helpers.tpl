{{- define "compeft.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "compeft.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "compeft.labels" -}}
{{ include "compeft.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "compeft.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- /* Whether replicas keep nothing of their own. */ -}}
{{- define "compeft.stateless" -}}
{{- if and .Values.database .Values.store }}yes{{ end -}}
{{- end }}

{{- /* What cannot work is said here, in one line, and nothing is installed. */ -}}
{{- define "compeft.check" -}}
{{- $many := or (gt (int .Values.replicas) 1) .Values.autoscaling.enabled }}
{{- if and $many (not (include "compeft.stateless" .)) }}
{{- fail "more than one replica needs database (PostgreSQL) and store (a bucket): one SQLite file has one aggregator" }}
{{- end }}
{{- if and (or .Values.database .Values.store) (not (include "compeft.stateless" .)) }}
{{- fail "database and store go together: give both, or neither" }}
{{- end }}
{{- if and (include "compeft.stateless" .) (not .Values.identitySecret) }}
{{- fail "replicas without a volume need identitySecret: an aggregator that finds no key makes one that no member believes" }}
{{- end }}
{{- if and .Values.dashboard.enabled (not .Values.dashboard.passwordSecret) }}
{{- fail "dashboard.enabled needs dashboard.passwordSecret: the live page is not served without a password" }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled (not .Values.dashboard.enabled) }}
{{- fail "serviceMonitor.enabled needs dashboard.enabled: /metrics is served there" }}
{{- end }}
{{- end }}

{{- define "compeft.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "compeft.environment" -}}
env:
  - {name: NUMBA_CACHE_DIR, value: /tmp/numba}
{{- with .Values.environmentSecret }}
envFrom:
  - secretRef: {name: {{ . | quote }}}
{{- end }}
{{- end }}

{{- define "compeft.pod" -}}
metadata:
  labels:
    {{- include "compeft.labels" . | nindent 4 }}
  {{- with .Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: 30
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  initContainers:
    - name: identity
      image: {{ include "compeft.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [sh, -euc]
      args:
        - |
          umask 077
          data=/var/lib/compeft/data
          mkdir -p "$data/ca"
          for name in aggregator.key aggregator-handovers.pb; do
            if [ -e "/identity/$name" ] && [ ! -e "$data/$name" ]; then cp "/identity/$name" "$data/$name"; fi
          done
          for name in authority.pem authority-old.pem server.pem; do
            if [ -e "/identity/$name" ] && [ ! -e "$data/ca/$name" ]; then cp "/identity/$name" "$data/ca/$name"; fi
          done
          chmod -R go-rwx "$data"
          if [ ! -e "$data/ca/authority.pem" ]; then
            rmdir "$data/ca"
            compeft ca init --data "$data"{{ range .Values.hosts }} --host {{ . | squote }}{{ end }}
          fi
          {{- if .Values.dashboard.enabled }}
          compeft dashboard-password --data "$data" < /page/password
          {{- end }}
      {{- include "compeft.environment" . | nindent 6 }}
      securityContext:
        {{- include "compeft.confined" . | nindent 8 }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - {name: data, mountPath: /var/lib/compeft}
        - {name: tmp, mountPath: /tmp}
        {{- if .Values.identitySecret }}
        - {name: identity, mountPath: /identity, readOnly: true}
        {{- end }}
        {{- if .Values.dashboard.enabled }}
        - {name: page, mountPath: /page, readOnly: true}
        {{- end }}
  containers:
    - name: aggregator
      image: {{ include "compeft.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - serve
        - --data=/var/lib/compeft/data
        - --host=0.0.0.0
        - --port=9443
        {{- if .Values.enrolment.enabled }}
        - --enroll-port=9444
        {{- end }}
        {{- if include "compeft.stateless" . }}
        - --database={{ .Values.database }}
        - --store={{ .Values.store }}
        {{- end }}
        - --log-format=json
        {{- range .Values.extraArgs }}
        - {{ . | quote }}
        {{- end }}
      {{- include "compeft.environment" . | nindent 6 }}
      ports:
        - {name: exchange, containerPort: 9443}
        {{- if .Values.enrolment.enabled }}
        - {name: enrolment, containerPort: 9444}
        {{- end }}
      # The kubelet's own gRPC probe speaks no mutual TLS: this asks the same gRPC health service with a certificate made for the question.
      startupProbe:
        exec: {command: [compeft, health, --data=/var/lib/compeft/data]}
        periodSeconds: 5
        timeoutSeconds: 15
        failureThreshold: 24
      readinessProbe:
        exec: {command: [compeft, health, --data=/var/lib/compeft/data]}
        periodSeconds: 30
        timeoutSeconds: 15
        failureThreshold: 2
      livenessProbe:
        exec: {command: [compeft, health, --data=/var/lib/compeft/data]}
        periodSeconds: 60
        timeoutSeconds: 30
        failureThreshold: 5
      securityContext:
        {{- include "compeft.confined" . | nindent 8 }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - {name: data, mountPath: /var/lib/compeft}
        - {name: tmp, mountPath: /tmp}
    {{- if .Values.dashboard.enabled }}
    - name: dashboard
      image: {{ include "compeft.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [sh, -euc]
      args:
        - |
          compeft ca issue /tmp/page --data /var/lib/compeft/data{{ range .Values.hosts }} --host {{ . | squote }}{{ end }} --host {{ include "compeft.name" . }}-page
          exec compeft dashboard --data /var/lib/compeft/data --host 0.0.0.0 --port 8443 --tls-cert /tmp/page/server.pem --tls-key /tmp/page/server.pem
      {{- include "compeft.environment" . | nindent 6 }}
      ports:
        - {name: page, containerPort: 8443}
      readinessProbe:
        tcpSocket: {port: page}
        periodSeconds: 15
      securityContext:
        {{- include "compeft.confined" . | nindent 8 }}
      resources:
        {{- toYaml .Values.dashboard.resources | nindent 8 }}
      volumeMounts:
        - {name: data, mountPath: /var/lib/compeft}
        - {name: tmp-page, mountPath: /tmp}
    {{- end }}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: 1Gi}
    {{- if .Values.dashboard.enabled }}
    - name: tmp-page
      emptyDir: {sizeLimit: 256Mi}
    - name: page
      secret: {secretName: {{ .Values.dashboard.passwordSecret | quote }}, defaultMode: 0440}
    {{- end }}
    {{- with .Values.identitySecret }}
    - name: identity
      secret: {secretName: {{ . | quote }}, defaultMode: 0440}
    {{- end }}
    {{- if include "compeft.stateless" . }}
    - name: data
      emptyDir: {sizeLimit: {{ .Values.scratchSize }}}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

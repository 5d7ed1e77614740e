// The rules and dashboards as a mixin, for go-jsonnet 0.18 or newer. `LISTENQ_RENEW=1 tests/mixin.sh` generates the YAML in
// this directory from it.
(import 'config.libsonnet') + (import 'alerts.libsonnet') + (import 'recording.libsonnet') + (import 'dashboards.libsonnet')

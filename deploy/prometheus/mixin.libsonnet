// The rules as a mixin, for go-jsonnet 0.18 or newer. The source is the YAML in this directory.
{
  // The alerts and the recording rules that they need.
  prometheusAlerts+:: std.parseYaml(importstr 'alerts.yml'),
  // The recording rules for the dashboard Fleet.
  prometheusRules+:: std.parseYaml(importstr 'recording.yml'),
}

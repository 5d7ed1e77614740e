// The rules for those who build theirs from mixins; for go-jsonnet 0.18 or newer. The YAML beside this is the source.
{
  // The alerts, and the recorded overflows that they need.
  prometheusAlerts+:: std.parseYaml(importstr 'alerts.yml'),
  // What the dashboard Fleet needs.
  prometheusRules+:: std.parseYaml(importstr 'recording.yml'),
}

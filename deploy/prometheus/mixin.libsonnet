// The alerts and the recording rules they need, for those who build their rules from mixins; for go-jsonnet 0.18 or
// newer. The YAML beside this is the source.
{
  prometheusAlerts+:: std.parseYaml(importstr 'alerts.yml'),
}

// The dashboards as a mixin, with the links to runbooks of `_config`. The directory of the JSON files must be in the search
// path: jsonnet -J dashboards
{
  local shipped = 'https://github.com/listenq/listenq/blob/main/deploy/runbooks/${__data.fields.alertname}.md',
  // The columns of the table of alerts, which an address may name like a label of the alert.
  local columns = ['cluster', 'service', 'instance', 'severity', 'address', 'port', 'netns', 'protocol'],
  local asColumn(url, name) = std.strReplace(url, '{{ $labels.' + name + ' }}', '${__data.fields.' + name + ':raw}'),
  local given = std.strReplace($._config.runbookUrl, '%s', '${__data.fields.alertname}'),
  local link = std.foldl(asColumn, columns, given),
  local dashboard(text) = std.parseJson(std.strReplace(text, std.escapeStringJson(shipped), std.escapeStringJson(link))),

  grafanaDashboards+:: {
    'listenq-fleet.json': dashboard(importstr 'listenq-fleet.json'),
    'listenq-host.json': dashboard(importstr 'listenq-host.json'),
    'listenq-listener.json': dashboard(importstr 'listenq-listener.json'),
  },
}

// The recording rules for the dashboard Fleet.
{
  prometheusRules+:: {
    local c = $._config,
    local vars = {
      sel: c.selector,
      reps: std.join(', ', c.replicaLabels),
      listener: std.join(', ', [c.clusterLabel, 'job', 'instance', 'netns', 'protocol', 'address', 'port']),
    },
    groups: [
      {
        name: 'listenq-fleet',
        interval: '1m',
        rules: [
          { record: rule[0], expr: rule[1] % vars }
          for rule in [
            // Only values above 0.
            ['listener:listenq_accept_queue_length:max', |||
              max without (%(reps)s) (listenq_accept_queue_length{%(sel)s} > 0)
            |||],
            ['listener:listenq_accept_queue_abandoned:max', |||
              max without (%(reps)s) (listenq_accept_queue_abandoned{%(sel)s} > 0)
            |||],
            ['listener:listenq_accept_queue_full_seconds:rate2m', |||
              max without (%(reps)s) (rate(listenq_accept_queue_full_seconds_total{%(sel)s}[2m]) > 0)
            |||],
            // The limit of listeners that hold a queue or have a diagnosis, and the owner of every listener that Fleet can
            // show.
            ['listener:listenq_accept_queue_limit:max', |||
              max without (%(reps)s) (
                listenq_accept_queue_limit{%(sel)s}
                and on (%(listener)s) (
                  listener:listenq_accept_queue_length:max{%(sel)s}
                  or listenq_listener_diagnosis{%(sel)s} == 1
                )
              )
            |||],
            // Sums per instance, for graphs over months.
            ['instance:listenq_listener_sockets:count', |||
              max without (%(reps)s) (
                count without (netns, protocol, address, port) (listenq_listener_sockets{%(sel)s})
              )
            |||],
            ['instance:listenq_accept_queue_length:sum', |||
              sum without (netns, protocol, address, port) (listener:listenq_accept_queue_length:max{%(sel)s})
              or 0 * instance:listenq_listener_sockets:count{%(sel)s}
            |||],
          ]
        ],
      },
    ],
  },
}

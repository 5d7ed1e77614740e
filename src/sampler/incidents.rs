//! Tells the log of incidents: one line when something is wrong with a listener, one when it is over.

use std::time::Duration;

use crate::diagnosis::Diagnoses;
use crate::state::{Incident, Span, Turn};

/// One line in the log.
pub fn say(incident: &Incident) {
    let Incident { netns, source: _, name, owner, turn, at } = incident;
    let protocol = name.protocol.label();
    let listener = name.endpoint();
    let (process, pid, place) = (&*owner.process, owner.pid, owner.place());
    match turn {
        Turn::Started(Span { diagnosis, peak, overflows, abandoned, .. }) => tracing::warn!(
            %netns, protocol, listener, process, pid, owner = place, diagnosis = diagnosis.label(), peak, overflows, abandoned,
            "trouble at a listener"
        ),
        Turn::Ended(Span { all, began, peak, overflows, abandoned, .. }) => {
            let lasted = Duration::from_secs(at.saturating_sub(*began).as_secs());
            let (lasted, diagnoses) = (humantime::format_duration(lasted), words(*all));
            tracing::info!(
                %netns, protocol, listener, process, pid, owner = place, diagnoses, %lasted, peak, overflows, abandoned,
                "the trouble at a listener is over"
            );
        }
    }
}

fn words(diagnoses: Diagnoses) -> String {
    diagnoses.iter().map(|diagnosis| diagnosis.label()).collect::<Vec<_>>().join(",")
}

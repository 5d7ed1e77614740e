//! The filter of the page.

use crate::report::Listener;
use crate::snapshot::owner::Owner;

/// Words that must all occur, in any case, in the names, the owner or the diagnoses of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// The text as the user wrote it.
    pub(super) text: String,
    words: Vec<String>,
}

// === impl Filter ===

impl Filter {
    pub(super) fn new(text: &str) -> Self {
        let words = text.split_whitespace().map(str::to_lowercase).collect();
        Self { text: text.to_owned(), words }
    }

    /// Parses the filter from the query of a URL; without a filter every listener passes.
    pub(super) fn from_query(query: &str) -> Self {
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        let given = pairs.find(|(name, _)| name == "filter");
        given.map(|(_, text)| Self::new(&text)).unwrap_or_default()
    }

    /// Whether every listener passes.
    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    pub(super) fn passes(&self, listener: &Listener) -> bool {
        self.is_empty() || {
            let text = searched(listener).to_lowercase();
            self.words.iter().all(|word| text.contains(word))
        }
    }
}

/// The searched text, one name per line, so that no word matches across two names.
fn searched(listener: &Listener) -> String {
    let Listener { netns, protocol, owner, diagnoses, .. } = listener;
    let Owner { process, unit, container_id, k8s_namespace, k8s_pod, k8s_container, .. } = owner;
    let endpoint = listener.endpoint();
    let names: [&str; 6] = [netns, protocol.label(), &endpoint, process, unit, container_id];
    let pod: [&str; 3] = [k8s_namespace, k8s_pod, k8s_container];
    let diagnoses = diagnoses.iter().map(|diagnosed| diagnosed.diagnosis.label());
    let all = names.into_iter().chain(pod).chain(diagnoses);
    all.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Protocol;

    fn listener() -> Listener {
        Listener {
            netns: "host".into(),
            protocol: Protocol::Tcp,
            address: "::1".into(),
            port: "8080".into(),
            owner: Owner {
                process: "Nginx".into(),
                unit: "web.service".into(),
                ..Owner::default()
            },
            ..Listener::default()
        }
    }

    fn passes(text: &str) -> bool {
        Filter::new(text).passes(&listener())
    }

    #[test]
    fn every_word_must_occur_somewhere() {
        for text in ["", "  ", "nginx", "NGINX host", "[::1]:8080", "80", "web.service tcp"] {
            assert!(passes(text), "{text}");
        }
        for text in ["apache", "nginx apache", "hosttcp"] {
            assert!(!passes(text), "{text}");
        }
    }

    #[test]
    fn the_first_filter_of_a_query_counts_and_any_query_is_understood() {
        let text = |query: &str| Filter::from_query(query).text;
        assert_eq!(text("a=b&filter=php+%22fpm%22&filter=x"), "php \"fpm\"");
        assert_eq!(text("filter"), "");
        assert_eq!(text("%ff=&filter=%FF%0"), "\u{fffd}%0");
    }
}

//! Records which features work, and logs each feature that is lost or comes back.

use crate::self_stats::{Feature, SelfStats};

/// Features that can differ between namespaces.
const OF_NAMESPACES: [Feature; 4] =
    [Feature::SockDiag, Feature::UnixDiag, Feature::Cgroup, Feature::Scan];

/// Features of one namespace; `None` until the feature was tried there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetnsFeatures([Option<bool>; OF_NAMESPACES.len()]);

// === impl NetnsFeatures ===

impl NetnsFeatures {
    /// Records whether `feature` works in this namespace.
    pub fn set(&mut self, feature: Feature, works: bool) {
        if let Some(place) = OF_NAMESPACES.iter().position(|of| *of == feature) {
            self.0[place] = Some(works);
        }
    }
}

/// Records which features work in all namespaces. A feature that is missing in one namespace is
/// unavailable.
pub fn note_all(stats: &mut SelfStats, namespaces: impl Iterator<Item = NetnsFeatures>) {
    let mut all = [None; OF_NAMESPACES.len()];
    for NetnsFeatures(one) in namespaces {
        for (all, one) in all.iter_mut().zip(one) {
            *all = match (*all, one) {
                (Some(all), Some(one)) => Some(all && one),
                (all, one) => all.or(one),
            };
        }
    }
    for (feature, works) in OF_NAMESPACES.into_iter().zip(all) {
        if let Some(works) = works {
            note(stats, feature, works);
        }
    }
}

/// Records whether `feature` works, and logs a change.
pub fn note(stats: &mut SelfStats, feature: Feature, works: bool) {
    let before = stats.features[feature as usize];
    if before == Some(works) {
        return;
    }
    stats.set_feature(feature, works);
    let (name, cost) = (feature.label(), feature.cost());
    match (works, feature) {
        (true, _) if before.is_none() => {}
        (true, _) => tracing::info!(feature = name, "feature available again"),
        // Many hosts have no cgroup v2. Nothing is lost if the processes that hold a socket are
        // visible.
        (false, Feature::Cgroup) => {
            tracing::debug!(feature = name, cost, "a feature is not available");
        }
        (false, _) => tracing::warn!(feature = name, cost, "a feature is not available"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn netns(sock_diag: Option<bool>) -> NetnsFeatures {
        let mut features = NetnsFeatures::default();
        if let Some(works) = sock_diag {
            features.set(Feature::SockDiag, works);
        }
        features
    }

    #[test]
    fn a_feature_is_available_where_every_namespace_has_it() {
        let table = [
            (vec![], None),
            (vec![None], None),
            (vec![None, Some(true)], Some(true)),
            (vec![Some(true), Some(false), Some(true)], Some(false)),
            (vec![Some(false), None], Some(false)),
        ];
        for (namespaces, expected) in table {
            let mut stats = SelfStats::default();
            note_all(&mut stats, namespaces.iter().copied().map(netns));
            assert_eq!(stats.features[Feature::SockDiag as usize], expected, "{namespaces:?}");
        }
    }

    #[test]
    fn a_feature_comes_back() {
        let mut stats = SelfStats::default();
        for works in [false, true, false] {
            note_all(&mut stats, [netns(Some(works)), netns(Some(true))].into_iter());
            assert_eq!(stats.features[Feature::SockDiag as usize], Some(works));
        }
    }
}

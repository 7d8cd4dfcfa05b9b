//! The Monoliths as a script saw them, kept for the thread that writes. A call that follows another shares with it all that
//! has not changed in between, so that a large cluster is not copied for each decision.

use std::sync::Arc;

use crate::model::MonolithId;
use crate::model::policy::{MonolithRow, View};

/// Pointers to rows that count as much as a row.
const POINTERS: usize = 16;

/// The rows of a view at one moment. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    all: Arc<Rows>,
    holds: usize,
}

#[derive(Debug, Default)]
struct Rows {
    rows: Vec<Arc<MonolithRow>>,
    versions: Vec<u64>,
}

impl Snapshot {
    /// A view, sharing the rows of an earlier snapshot that are still the same.
    pub fn after(earlier: &Self, view: &View) -> Self {
        let mut copied = 0;
        // Equal versions are equal content. Rows that moved up or down are copied: Monoliths seldom come and go.
        let known = earlier.rows().iter().zip(earlier.versions()).map(Some).chain(std::iter::repeat(None));
        let rows = view.rows().iter().zip(view.versions()).zip(known);
        let rows = rows.map(|((row, version), known)| match known {
            Some((same, known)) if known == version => same.clone(),
            _ => {
                copied += 1;
                Arc::new(row.clone())
            }
        });
        let rows: Vec<_> = rows.collect();
        let holds = copied + rows.len() / POINTERS;
        Self { all: Arc::new(Rows { rows, versions: view.versions().to_vec() }), holds }
    }

    /// The same once more, for another call: it holds nothing that this one does not.
    pub fn again(&self) -> Self {
        Self { all: self.all.clone(), holds: 0 }
    }

    /// The rows, sorted by id.
    pub fn rows(&self) -> &[Arc<MonolithRow>] {
        &self.all.rows
    }

    /// The version of each row, as in the view.
    pub fn versions(&self) -> &[u64] {
        &self.all.versions
    }

    /// The row of a Monolith.
    pub fn get(&self, id: &MonolithId) -> Option<&Arc<MonolithRow>> {
        self.rows().binary_search_by(|row| row.id.cmp(id)).ok().map(|at| &self.rows()[at])
    }

    /// How many rows it keeps in memory that no earlier one does.
    pub fn holds(&self) -> usize {
        self.holds
    }
}

impl From<View> for Snapshot {
    fn from(view: View) -> Self {
        Self::from(&view)
    }
}

impl From<&View> for Snapshot {
    fn from(view: &View) -> Self {
        Self::after(&Self::default(), view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str) -> MonolithRow {
        MonolithRow { id: id.into(), ..MonolithRow::default() }
    }

    #[test]
    fn what_did_not_change_is_shared_and_the_rest_is_as_it_was() {
        let mut view = View::of((0..40).map(|n| row(&format!("m{n:02}"))));
        let before = Snapshot::from(&view);
        assert_eq!(before.holds(), 40 + 40 / POINTERS);
        view.update(&"m07".into(), |row| row.rooms = 3);
        let after = Snapshot::after(&before, &view);
        assert_eq!((after.holds(), after.again().holds()), (1 + 40 / POINTERS, 0));
        for (at, (old, new)) in before.rows().iter().zip(after.rows()).enumerate() {
            assert_eq!(Arc::ptr_eq(old, new), at != 7);
        }
        assert_eq!((before.rows()[7].rooms, after.rows()[7].rooms), (0, 3));
        for change in [0, 1] {
            if change == 0 {
                view.remove(&"m03".into());
            } else {
                view.insert(row("m031"));
            }
            let snapshot = Snapshot::after(&after, &view);
            let rows: Vec<_> = snapshot.rows().iter().map(|row| (**row).clone()).collect();
            assert_eq!((rows.as_slice(), snapshot.versions()), (view.rows(), view.versions()));
        }
    }
}

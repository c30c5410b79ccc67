//! Items go to the node that they are near, when nothing has to move for load.
//!
//! No such move makes a worker fuller than the fuller of the two concerned was. Evening out therefore does not undo it, and
//! with loads that stay everything comes to rest.

use super::{Balancer, Item, ItemLoad, Move, Node, Reason, Side, Worker};

/// Part of a worker below which it does not matter where an item is handled.
const MATTERS: f64 = 0.01;
/// Items for which a partner to change places with is looked for at a look.
const EXCHANGES: usize = 64;
/// What sums of the same loads in another order may differ by.
const ROUNDING: f64 = 1e-9;

impl Balancer {
    /// To be called last: the list of sorted items is used for those away from home.
    pub(super) fn go_home(&mut self, items: &[ItemLoad]) {
        self.find_away(items);
        let budget = (items.len() / self.settings.budget).max(1);
        let mut exchanges = 0;
        for place in 0..self.sorted.len() {
            if self.moves.len() >= budget {
                break;
            }
            let Some((item, from, home)) = self.away(place, items) else {
                continue;
            };
            let Some(to) = self.roomiest_at(home) else {
                continue;
            };
            if self.allows(from, to, self.share(item)) {
                self.send_home(&[(place, to)], items);
            } else if exchanges < EXCHANGES && self.moves.len() + 2 <= budget.max(2) {
                exchanges += 1;
                if let Some((partner, at)) = self.partner(place, items) {
                    self.send_home(&[(place, at), (partner, from)], items);
                }
            }
        }
    }

    /// Whether neither of two workers has more to do than one of them has now, when so much load changes hands.
    fn allows(&self, from: usize, to: usize, share: f64) -> bool {
        let (from, to) = (&self.sides[from], &self.sides[to]);
        let top = from.level().max(to.level()) + ROUNDING;
        from.level_with(-share) <= top && to.level_with(share) <= top
    }

    /// A smaller item that comes home where the item at this place goes away from, and the other way round: where it is
    /// listed, and who has it.
    fn partner(&self, place: usize, items: &[ItemLoad]) -> Option<(usize, usize)> {
        let (item, from, home) = self.away(place, items)?;
        let here = self.sides[from].node;
        (place + 1..self.sorted.len()).find_map(|place| {
            let (other, at, wants) = self.away(place, items)?;
            let back = Some(wants) == here && self.sides[at].node == Some(home);
            let load = self.share(item) - self.share(other);
            (back && self.allows(from, at, load)).then_some((place, at))
        })
    }

    /// Lists the items that are away from home and may move, those with most load first.
    fn find_away(&mut self, items: &[ItemLoad]) {
        self.sorted.clear();
        for (number, item) in items.iter().enumerate() {
            let history = &self.histories[number];
            let side = self.sides.get(usize::from(item.worker.0));
            let away = |side: &Side| side.takes && item.node.is_some() && side.node != item.node;
            if side.is_some_and(away) && history.rest == 0 && history.share >= MATTERS {
                let millionths = (history.share * 1e6) as u32;
                self.sorted
                    .push(u64::from(u32::MAX - millionths) << 16 | number as u64);
            }
        }
        self.sorted.sort_unstable();
    }

    /// The item listed here, who has it, and where it would rather be; none if it has moved.
    fn away(&self, place: usize, items: &[ItemLoad]) -> Option<(Item, usize, Node)> {
        let item = self.waiting(place)?;
        let ItemLoad { worker, node, .. } = items[usize::from(item.0)];
        Some((item, usize::from(worker.0), node?))
    }

    fn share(&self, item: Item) -> f64 {
        self.histories[usize::from(item.0)].share
    }

    /// Whoever takes items on a node and has least to do.
    fn roomiest_at(&self, node: Node) -> Option<usize> {
        let sides = self.sides.iter().enumerate();
        let sides = sides.filter(|(_, side)| side.takes && side.node == Some(node));
        let best = sides.min_by(|(_, a), (_, b)| a.level().total_cmp(&b.level()));
        best.map(|(number, _)| number)
    }

    /// Items, by where they are listed, go to these workers, all together.
    fn send_home(&mut self, going: &[(usize, usize)], items: &[ItemLoad]) {
        let mark = self.moves.len();
        for (place, to) in going {
            let Some((item, from, home)) = self.away(*place, items) else {
                continue;
            };
            self.sorted[*place] = u64::MAX;
            self.moves.push(Move {
                item,
                from: Worker(from as u16),
                to: Worker(*to as u16),
                reason: Reason::Home(home),
                before: 0.0,
                after: 0.0,
            });
        }
        let before = self.fullest_of(mark);
        for made in &self.moves[mark..] {
            let share = self.histories[usize::from(made.item.0)].share;
            self.sides[usize::from(made.from.0)].load -= share;
            self.sides[usize::from(made.to.0)].load += share;
        }
        let after = self.fullest_of(mark);
        for made in &mut self.moves[mark..] {
            (made.before, made.after) = (before, after);
        }
    }

    /// The largest level of the workers that moves from this one on are about.
    fn fullest_of(&self, mark: usize) -> f64 {
        let concerned = self.moves[mark..].iter().flat_map(|m| [m.from, m.to]);
        let levels = concerned.map(|worker| self.sides[usize::from(worker.0)].level());
        levels.fold(0.0, f64::max)
    }
}

//! What load items have, and how far that can be told.

use super::{Balancer, Filling, History, Item, ItemLoad};

/// Weight of the last look in the noise.
const NOISE_WEIGHT: f64 = 0.25;
/// Change of the load of all by which nothing known before holds.
const OTHER_LOAD: f64 = 0.1;
/// Change of an item by which it is another, as part of what it was.
const OTHER_ITEM: f64 = 0.1;

/// Standard deviations that are no chance.
const SURE: f64 = 4.0;

impl History {
    /// Takes in what was seen over so much capacity. Returns what it says of the noise.
    fn see(&mut self, share: f64, capacity: f64, memory: f64, change: f64, chance: f64) -> f64 {
        let news = share - self.share;
        let chance = SURE * chance * self.share.max(share).sqrt();
        let limit = change.max(OTHER_ITEM * self.share).max(chance);
        if self.weight == 0.0 || memory == 0.0 || news.abs() > limit {
            // One that is another at look after look is noise, and one that was steady until now is not.
            let unsteady = self.weight <= 2.0 * capacity;
            (self.share, self.weight) = (share, capacity);
            return if unsteady { news } else { 0.0 };
        }
        let before = self.weight.min(memory * capacity);
        self.weight = before + capacity;
        self.share += news * capacity / self.weight;
        news
    }
}

impl Balancer {
    /// Takes the loads in and adds them up by worker; finds elephants, those that fill a worker, and the noise. `reference`
    /// is the largest worker's capacity.
    pub(super) fn weigh(&mut self, items: &[ItemLoad], reference: f64, changed: bool) {
        let seen: f64 = items.iter().map(|item| item.load as f64 / reference).sum();
        let known: f64 = self.histories.iter().map(|history| history.share).sum();
        if (seen - known).abs() > OTHER_LOAD * known {
            // Estimates are good for telling items from each other only as long as they are of the same time.
            self.histories
                .iter_mut()
                .for_each(|history| history.weight = history.weight.min(reference));
        }
        let (memory, change) = (f64::from(self.settings.memory), self.settings.change);
        // Where packets come at random, deviations are as the root of the load.
        let workers = self.sides.iter().filter(|side| side.takes).count() as f64;
        let chance = match known > 0.0 {
            true => self.scatter / (reference * known / workers.max(1.0)).sqrt(),
            false => 0.0,
        };
        for (number, (item, history)) in items.iter().zip(&mut self.histories).enumerate() {
            let news = history.see(
                item.load as f64 / reference,
                reference,
                memory,
                change,
                chance,
            );
            let share = history.share;
            if let Some(side) = self.sides.get_mut(usize::from(item.worker.0)) {
                side.load += share;
                side.drift += news;
                side.doubt += share * reference / history.weight;
                let part = share / side.capacity;
                let heavy = part > self.settings.elephant;
                history.heavy = if heavy { 2.min(history.heavy + 1) } else { 0 };
                if part >= self.settings.full {
                    self.filling.push(Filling {
                        item: Item(number as u16),
                        worker: item.worker,
                        load: part,
                    });
                }
            }
            if !changed {
                history.rest = history.rest.saturating_sub(1);
            }
        }
        let count = self.sides.iter().filter(|side| side.takes).count() as f64;
        if count == 0.0 {
            return;
        }
        let takers = || self.sides.iter().filter(|side| side.takes);
        if known > 0.0 && !changed {
            // That all loads rise together makes no worker's place less certain.
            let common = takers().map(|side| side.drift).sum::<f64>() / count;
            let apart = takers().map(|side| (side.drift - common).abs());
            // What is chance in counting falls with the root of how much is counted.
            let scatter = apart.sum::<f64>() / count * reference.sqrt();
            self.scatter += NOISE_WEIGHT * (scatter - self.scatter);
        }
        let load: f64 = takers().map(|side| side.load).sum();
        if load > 0.0 {
            let doubt = takers().map(|side| side.doubt).sum::<f64>() / load;
            self.noise = self.scatter * (doubt / reference).sqrt();
        }
    }
}

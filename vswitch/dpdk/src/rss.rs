//! Receive side scaling: how a device with several receive queues chooses one.
//!
//! It hashes addresses and ports ([`HashTypes`]) with Toeplitz's function under a key ([`RssKey`]), and looks the hash's low
//! bits up in its redirection table ([`Reta`]), whose entries name queues. Which of the three a device has differs: what
//! came of it says [`RssState`]. Devices without a table spread by a rule of their own.

use std::fmt;
use std::mem;
use std::ptr::null_mut;
use std::sync::Arc;

use crate::attachment::{Attachment, Steps, check, control};
use crate::error::{Errno, PortError};

/// Entries that DPDK takes together.
const GROUP: usize = dpdk_sys::DPDK_RETA_GROUP_SIZE as usize;

/// Bytes of a key where the device does not say how many it takes: four more than two IPv6 addresses and two ports.
const KEY_LEN: usize = 40;

/// Longest key that DPDK can name.
const LONGEST_KEY: usize = u8::MAX as usize;

/// A key to hash with. Devices that take a longer one get it over and over, which changes no hash of theirs: bits beyond
/// the first 320 count for nothing that is hashed here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RssKey(pub [u8; KEY_LEN]);

impl RssKey {
    /// As many bytes as a device takes, by what it says; 0 says nothing.
    fn sized(&self, device: u8) -> Vec<u8> {
        let len = match device {
            0 => KEY_LEN,
            len => usize::from(len),
        };
        self.0.iter().copied().cycle().take(len).collect()
    }
}

impl fmt::Debug for RssKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RssKey")
    }
}

/// What of a frame is hashed, as a set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct HashTypes(u64);

/// Each type and what people call it. IPv6 has a second form, which some devices want named for any extension header.
const TYPES: [(&str, u64); 12] = [
    ("ipv4", dpdk_sys::DPDK_RSS_IPV4),
    ("ipv4-fragment", dpdk_sys::DPDK_RSS_FRAG_IPV4),
    ("ipv4-tcp", dpdk_sys::DPDK_RSS_NONFRAG_IPV4_TCP),
    ("ipv4-udp", dpdk_sys::DPDK_RSS_NONFRAG_IPV4_UDP),
    ("ipv4-sctp", dpdk_sys::DPDK_RSS_NONFRAG_IPV4_SCTP),
    ("ipv4-other", dpdk_sys::DPDK_RSS_NONFRAG_IPV4_OTHER),
    ("ipv6", dpdk_sys::DPDK_RSS_IPV6 | dpdk_sys::DPDK_RSS_IPV6_EX),
    ("ipv6-fragment", dpdk_sys::DPDK_RSS_FRAG_IPV6),
    (
        "ipv6-tcp",
        dpdk_sys::DPDK_RSS_NONFRAG_IPV6_TCP | dpdk_sys::DPDK_RSS_IPV6_TCP_EX,
    ),
    (
        "ipv6-udp",
        dpdk_sys::DPDK_RSS_NONFRAG_IPV6_UDP | dpdk_sys::DPDK_RSS_IPV6_UDP_EX,
    ),
    ("ipv6-sctp", dpdk_sys::DPDK_RSS_NONFRAG_IPV6_SCTP),
    ("ipv6-other", dpdk_sys::DPDK_RSS_NONFRAG_IPV6_OTHER),
];

impl HashTypes {
    /// Nothing.
    pub const NONE: Self = Self(0);

    /// What is wanted of a device that offers these bits: addresses and ports of IP, and nothing that tells the two
    /// directions of a flow apart or looks into tunnels.
    pub(crate) fn offered(bits: u64) -> Self {
        let wanted = TYPES.iter().fold(0, |all, (_, bits)| all | bits);
        Self(bits & wanted)
    }

    /// As DPDK has it.
    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// No frame is hashed.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// By name, as in `ipv4-tcp`.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        TYPES
            .iter()
            .filter(move |(_, bits)| self.0 & bits != 0)
            .map(|(name, _)| *name)
    }
}

/// How a started port spreads flows over its receive queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RssState {
    /// What it hashes.
    pub types: HashTypes,
    /// It hashes with the key it was given; else with its driver's.
    pub own_key: bool,
    /// Entries of its redirection table; 0 if there is none to be written.
    pub reta_size: u16,
}

/// A started port's redirection table. Keeps the device started: close it with the port.
#[derive(Debug)]
pub struct Reta {
    attachment: Arc<Attachment>,
    size: u16,
    queues: u16,
}

impl Reta {
    pub(crate) fn new(attachment: Arc<Attachment>, size: u16, queues: u16) -> Self {
        Self {
            attachment,
            size,
            queues,
        }
    }

    /// How many entries it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// How many queues entries can name.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// The queue that each entry names.
    ///
    /// # Errors
    ///
    /// When the device does not answer.
    pub fn read(&self) -> Result<Vec<u16>, PortError> {
        let _lock = control();
        self.steps()
            .run("reading the redirection table", || {
                query(self.attachment.port(), self.size)
            })
            .map(Option::unwrap_or_default)
    }

    /// Has entries name other queues: pairs of entry and queue. Entries that are not listed stay; of an entry that is
    /// listed twice the last counts. Frames that were received before are where they were.
    ///
    /// # Errors
    ///
    /// When there is no such entry or queue, or the device refuses.
    pub fn write(&self, entries: &[(u16, u16)]) -> Result<(), PortError> {
        const STEP: &str = "writing the redirection table";
        let steps = self.steps();
        let outside = |&&(entry, queue): &&(u16, u16)| entry >= self.size || queue >= self.queues;
        if entries.iter().any(|pair| outside(&pair)) {
            return steps.run(STEP, || Err(Errno::from_return(-libc::EINVAL)));
        }
        let mut groups = groups(self.size);
        for (entry, queue) in entries {
            let (group, place) = (usize::from(*entry) / GROUP, usize::from(*entry) % GROUP);
            if let Some(group) = groups.get_mut(group) {
                group.mask |= 1 << place;
                group.reta[place] = *queue;
            }
        }
        let _lock = control();
        // SAFETY: the port is started, and there is a group for every 64 entries, as the call expects.
        steps.call(STEP, || unsafe {
            let port = self.attachment.port();
            dpdk_sys::rte_eth_dev_rss_reta_update(port, groups.as_mut_ptr(), self.size)
        })
    }

    fn steps(&self) -> Steps {
        Steps {
            device: self.attachment.device().clone(),
        }
    }
}

/// Room for a table of so many entries, none of them chosen.
fn groups(size: u16) -> Vec<dpdk_sys::rte_eth_rss_reta_entry64> {
    // SAFETY: numbers, all of which may be zero.
    let empty = || unsafe { mem::zeroed::<dpdk_sys::rte_eth_rss_reta_entry64>() };
    let count = usize::from(size).div_ceil(GROUP);
    std::iter::repeat_with(empty).take(count).collect()
}

/// The queue that each entry names; `None` if the device has no table that can be read. With the control lock held.
pub(crate) fn query(port: u16, size: u16) -> Result<Option<Vec<u16>>, Errno> {
    if size == 0 {
        return Ok(None);
    }
    let mut groups = groups(size);
    for (number, group) in groups.iter_mut().enumerate() {
        let entries = (usize::from(size) - number * GROUP).min(GROUP);
        group.mask = u64::MAX >> (GROUP - entries);
    }
    // SAFETY: a port that does not exist is an error, and there is a group for every 64 entries, as the call expects.
    let result = unsafe { dpdk_sys::rte_eth_dev_rss_reta_query(port, groups.as_mut_ptr(), size) };
    if result == -libc::ENOTSUP {
        return Ok(None);
    }
    check(result)?;
    let entries = groups.iter().flat_map(|group| group.reta);
    Ok(Some(entries.take(size.into()).collect()))
}

/// What a port is to be configured with.
#[derive(Clone, Debug, Default)]
pub(crate) struct RssSetup {
    pub(crate) types: HashTypes,
    /// `None` leaves the choice to the driver.
    pub(crate) key: Option<Vec<u8>>,
}

impl RssSetup {
    pub(crate) fn new(info: &dpdk_sys::rte_eth_dev_info, key: RssKey) -> Self {
        Self {
            types: HashTypes::offered(info.flow_type_rss_offloads),
            key: Some(key.sized(info.hash_key_size)),
        }
    }

    /// Puts it into a configuration, which points to the key from then on.
    pub(crate) fn fill(&mut self, conf: &mut dpdk_sys::rte_eth_conf) {
        conf.rxmode.mq_mode = dpdk_sys::RTE_ETH_MQ_RX_RSS;
        conf.rx_adv_conf.rss_conf = self.raw();
    }

    fn raw(&mut self) -> dpdk_sys::rte_eth_rss_conf {
        // SAFETY: numbers and a pointer, all of which may be zero.
        let mut raw: dpdk_sys::rte_eth_rss_conf = unsafe { mem::zeroed() };
        raw.rss_hf = self.types.bits();
        raw.rss_key = null_mut();
        if let Some(key) = &mut self.key {
            raw.rss_key_len = key.len().min(LONGEST_KEY) as u8;
            raw.rss_key = key.as_mut_ptr();
        }
        raw
    }

    /// Asks a started port what it hashes, sets it once more if that is something else, and says what it came to. With the
    /// control lock held.
    pub(crate) fn settle(&mut self, port: u16, reta_size: u16) -> RssState {
        let mut now = hashing(port);
        if now.as_ref().is_some_and(|now| !self.is(now)) {
            let mut raw = self.raw();
            // SAFETY: the port is started, and the key outlives the call, which copies it.
            if unsafe { dpdk_sys::rte_eth_dev_rss_hash_update(port, &raw mut raw) } == 0 {
                now = hashing(port);
            }
        }
        let (types, own_key) = match &now {
            Some((bits, key)) => (
                HashTypes::offered(*bits),
                self.key.is_some() && self.key.as_ref() == Some(key),
            ),
            // A driver that does not tell has taken what it was configured with.
            None => (self.types, self.key.is_some()),
        };
        let reta = query(port, reta_size).ok().flatten();
        RssState {
            types,
            own_key,
            reta_size: reta.map_or(0, |entries| entries.len() as u16),
        }
    }

    fn is(&self, (bits, key): &(u64, Vec<u8>)) -> bool {
        let own = self.key.as_ref().is_none_or(|own| own == key);
        own && HashTypes::offered(*bits) == self.types
    }
}

/// What a port hashes and with which key, if its driver tells.
fn hashing(port: u16) -> Option<(u64, Vec<u8>)> {
    let info = crate::attachment::device_info(port).ok()?;
    let len = match info.hash_key_size {
        0 => KEY_LEN,
        len => usize::from(len),
    };
    // Drivers write as much as their key has, whatever they are told.
    let mut key = vec![0; LONGEST_KEY];
    // SAFETY: numbers and a pointer, all of which may be zero.
    let mut raw: dpdk_sys::rte_eth_rss_conf = unsafe { mem::zeroed() };
    raw.rss_key = key.as_mut_ptr();
    raw.rss_key_len = len as u8;
    // SAFETY: the port exists, and the key has room for the longest there is.
    check(unsafe { dpdk_sys::rte_eth_dev_rss_hash_conf_get(port, &raw mut raw) }).ok()?;
    key.truncate(len);
    Some((raw.rss_hf, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_long_as_devices_take() {
        let key = RssKey(std::array::from_fn(|i| i as u8));
        assert_eq!(key.sized(0), key.0);
        assert_eq!(key.sized(40), key.0);
        let long = key.sized(52);
        assert_eq!((long.len(), long[39], long[40], long[51]), (52, 39, 0, 11));
    }

    #[test]
    fn only_addresses_and_ports_are_hashed() {
        let all = HashTypes::offered(u64::MAX);
        assert_eq!(all.names().count(), TYPES.len());
        // What has the source alone count, or the inner frame, is at the top.
        assert_eq!(all.bits() >> 18, 0);
        let some = HashTypes::offered(dpdk_sys::DPDK_RSS_IPV4 | dpdk_sys::DPDK_RSS_IPV6_TCP_EX);
        assert_eq!(some.names().collect::<Vec<_>>(), ["ipv4", "ipv6-tcp"]);
        assert!(HashTypes::offered(1 << 63).is_empty());
    }

    #[test]
    fn a_group_for_every_64_entries() {
        for (size, count) in [(0, 0), (1, 1), (64, 1), (128, 2), (512, 8)] {
            assert_eq!(groups(size).len(), count);
        }
    }
}

//! What each request does.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vhost::vhost_user::message::{
    FrontendReq, VhostUserMemory, VhostUserMemoryRegion, VhostUserMsgValidator,
    VhostUserSingleMemoryRegion, VhostUserU64, VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;

use super::handed::Handed;
use super::message::{self, Message, name, split};
use super::vring::{Device, Kick, Vring};
use super::{Custody, Rings, SessionConfig, SessionEnd, SessionEvent};
use crate::features::{self, mask};
use crate::memory::{GuestAddr, GuestMemory, MAX_REGIONS, Region, RegionSpec, UserAddr};
use crate::ring::{QueueIndex, RingAddresses, Trouble};

/// Complaints logged as warnings.
const LOUD_COMPLAINTS: u32 = 16;

/// Smallest MTU that IPv4 lets a link have.
const MIN_MTU: u64 = 68;

/// No descriptor beside SET_VRING_KICK, CALL or ERR.
const NO_FD: u64 = 0x100;

/// The state of a conversation.
pub(super) struct Session<'a> {
    config: &'a SessionConfig,
    custody: &'a Custody,
    rings: &'a mut dyn Rings,
    device: Device,
    vrings: Vec<Vring>,
    /// Acknowledged protocol features.
    protocol: u64,
    link_up: bool,
    complaints: u32,
}

/// What a request is answered with.
enum Answer {
    /// Nothing, or success if asked.
    Done,
    /// A value; this is the answer whether asked or not.
    Bytes(Vec<u8>),
}

/// Why a request failed, as a sentence's end.
type Refusal = String;

impl<'a> Session<'a> {
    pub(super) fn new(
        config: &'a SessionConfig,
        custody: &'a Custody,
        rings: &'a mut dyn Rings,
        trouble: Trouble,
    ) -> Self {
        let queues = u32::from(config.queue_pairs) * 2;
        Self {
            config,
            custody,
            rings,
            device: Device {
                memory: Arc::new(GuestMemory::empty()),
                features: None,
                trouble,
            },
            vrings: (0..queues)
                .map(|queue| Vring::new(QueueIndex(queue)))
                .collect(),
            protocol: 0,
            link_up: false,
            complaints: 0,
        }
    }

    /// Does what a message asks, and says what to answer.
    pub(super) fn answer(&mut self, mut message: Message) -> Result<Option<Vec<u8>>, SessionEnd> {
        let fds = std::mem::replace(&mut message.fds, Handed::new(self.custody));
        let outcome = match FrontendReq::try_from(message.code) {
            Ok(request) => self.perform(request, &message, fds),
            Err(_) => Err("the switch does not know it".to_owned()),
        };
        self.report_link();
        let asked =
            message.need_reply && features::has(self.protocol, features::PROTOCOL_REPLY_ACK);
        let status = |status: u64| message::answer(message.code, &status.to_ne_bytes());
        match outcome {
            Ok(Answer::Bytes(payload)) => Ok(Some(message::answer(message.code, &payload))),
            Ok(Answer::Done) => Ok(asked.then(|| status(0))),
            Err(reason) if asked && !has_own_answer(message.code) => {
                self.complain(&format!("{} refused: {reason}", name(message.code)));
                Ok(Some(status(1)))
            }
            Err(reason) => Err(SessionEnd::Refused {
                request: name(message.code),
                reason,
            }),
        }
    }

    fn perform(
        &mut self,
        request: FrontendReq,
        message: &Message,
        fds: Handed,
    ) -> Result<Answer, Refusal> {
        use FrontendReq as R;
        match request {
            R::SET_MEM_TABLE => return self.set_mem_table(message, fds),
            R::ADD_MEM_REG => return self.add_region(message, fds),
            R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR => {
                return self.set_fd(request, message, fds);
            }
            // QEMU passes the region's descriptor along again.
            R::REM_MEM_REG if fds.len() == 1 => {}
            _ if fds.is_empty() => {}
            _ => self.complain(&format!(
                "{} came with {} descriptors of files that it has no use for; closed",
                name(message.code),
                fds.len()
            )),
        }
        drop(fds);
        match request {
            R::GET_FEATURES => Ok(number(self.offered())),
            R::SET_FEATURES => self.set_features(message),
            R::GET_PROTOCOL_FEATURES => Ok(number(self.offered_protocol())),
            R::SET_PROTOCOL_FEATURES => self.set_protocol_features(message),
            R::SET_OWNER => Ok(Answer::Done),
            R::RESET_OWNER => {
                self.stop_rings();
                Ok(Answer::Done)
            }
            R::GET_QUEUE_NUM => Ok(number(u64::from(self.config.queue_pairs))),
            R::GET_MAX_MEM_SLOTS => Ok(number(MAX_REGIONS as u64)),
            R::REM_MEM_REG => self.remove_region(message),
            R::SET_VRING_NUM => self.set_num(message),
            R::SET_VRING_ADDR => self.set_addr(message),
            R::SET_VRING_BASE => self.set_base(message),
            R::GET_VRING_BASE => self.get_base(message),
            R::SET_VRING_ENABLE => self.set_enable(message),
            R::NET_SET_MTU => self.set_mtu(message),
            // The guest's address is learnt from its first frame; nothing more can be done with an announcement.
            R::SEND_RARP => message.payload::<VhostUserU64>().map(|_| Answer::Done),
            _ => Err("the switch does not offer it".to_owned()),
        }
    }

    fn offered(&self) -> u64 {
        self.config.features | mask(features::VHOST_PROTOCOL_FEATURES)
    }

    fn offered_protocol(&self) -> u64 {
        let mtu = match self.config.mtu {
            Some(_) => mask(features::PROTOCOL_NET_MTU),
            None => 0,
        };
        mask(features::PROTOCOL_MQ)
            | mask(features::PROTOCOL_REPLY_ACK)
            | mask(features::PROTOCOL_CONFIGURE_MEM_SLOTS)
            | mtu
    }

    fn set_features(&mut self, message: &Message) -> Result<Answer, Refusal> {
        let VhostUserU64 { value } = message.payload()?;
        let surplus = value & !self.offered();
        if surplus != 0 {
            return Err(format!(
                "it acknowledges features that were not offered: {}",
                features::virtio_names(surplus).join(", ")
            ));
        }
        if self.device.features == Some(value) {
            return Ok(Answer::Done);
        }
        let packed = features::has(value, features::RING_PACKED);
        let other_layout = self.device.features.is_some() && packed != self.is_packed();
        for vring in &mut self.vrings {
            vring.restart(self.rings);
            if other_layout {
                vring.forget_layout();
            }
        }
        self.device.features = Some(value);
        self.advance_all();
        self.rings.event(SessionEvent::Negotiated {
            virtio: value,
            protocol: self.protocol,
        });
        Ok(Answer::Done)
    }

    fn set_protocol_features(&mut self, message: &Message) -> Result<Answer, Refusal> {
        let VhostUserU64 { value } = message.payload()?;
        let surplus = value & !self.offered_protocol();
        if surplus != 0 {
            return Err(format!(
                "it acknowledges features that were not offered: {}",
                features::protocol_names(surplus).join(", ")
            ));
        }
        self.protocol = value;
        Ok(Answer::Done)
    }

    fn is_packed(&self) -> bool {
        let negotiated = self.device.features.unwrap_or(0);
        features::has(negotiated, features::RING_PACKED)
    }

    fn set_mem_table(&mut self, message: &Message, mut fds: Handed) -> Result<Answer, Refusal> {
        let (table, mut rest) = message.split_payload::<VhostUserMemory>()?;
        let count = table.num_regions as usize;
        if count != fds.len() {
            return Err(format!(
                "{count} memory regions came with {} descriptors",
                fds.len()
            ));
        }
        let mut memory = GuestMemory::empty();
        for index in 0..count {
            let Some((region, more)) = split::<VhostUserMemoryRegion>(rest) else {
                return Err(format!("it is too short for {count} memory regions"));
            };
            rest = more;
            let fd = fds
                .memory(index, self.config.memory_files)
                .map_err(refusal)?;
            memory = map(&memory, &region, fd)?;
        }
        if !rest.is_empty() {
            return Err(format!("it is too long for {count} memory regions"));
        }
        self.change_memory(memory);
        Ok(Answer::Done)
    }

    fn add_region(&mut self, message: &Message, mut fds: Handed) -> Result<Answer, Refusal> {
        let region: VhostUserSingleMemoryRegion = message.payload()?;
        fds.only()?;
        let fd = fds.memory(0, self.config.memory_files).map_err(refusal)?;
        let memory = map(&self.device.memory, &region, fd)?;
        self.change_memory(memory);
        Ok(Answer::Done)
    }

    fn remove_region(&mut self, message: &Message) -> Result<Answer, Refusal> {
        let region: VhostUserSingleMemoryRegion = message.payload()?;
        let memory = self.device.memory.without(spec(&region)).map_err(refusal)?;
        self.change_memory(memory);
        Ok(Answer::Done)
    }

    /// The barrier: nobody touches the old memory when this returns.
    fn change_memory(&mut self, memory: GuestMemory) {
        let event = SessionEvent::MemoryTable {
            regions: memory.regions().len(),
            bytes: memory.bytes(),
        };
        for vring in &mut self.vrings {
            vring.park(self.rings);
        }
        self.device.memory = Arc::new(memory);
        for vring in &mut self.vrings {
            vring.rebind(&self.device, self.rings);
        }
        self.rings.event(event);
        self.advance_all();
    }

    fn set_num(&mut self, message: &Message) -> Result<Answer, Refusal> {
        let state: VhostUserVringState = message.payload()?;
        let (packed, most) = (self.is_packed(), self.config.ring_size_max);
        let size = u16::try_from(state.num)
            .ok()
            .filter(|size| (2..=most).contains(size) && (packed || size.is_power_of_two()));
        let Some(size) = size else {
            let what = if packed { "2" } else { "a power of two" };
            return Err(format!(
                "a ring of {} entries; {what} up to {most} is accepted",
                { state.num },
            ));
        };
        self.update(state.index, |vring, rings| {
            if vring.size != Some(size) {
                vring.restart(rings);
                vring.size = Some(size);
            }
        })
    }

    fn set_addr(&mut self, message: &Message) -> Result<Answer, Refusal> {
        let addr: VhostUserVringAddr = message.payload()?;
        if !addr.is_valid() {
            return Err("a part of the ring is misaligned, or a flag is unknown".to_owned());
        }
        let addresses = RingAddresses {
            descriptors: UserAddr(addr.descriptor),
            available: UserAddr(addr.available),
            used: UserAddr(addr.used),
        };
        self.update(addr.index, |vring, rings| {
            vring.restart(rings);
            vring.addresses = Some(addresses);
        })
    }

    fn set_base(&mut self, message: &Message) -> Result<Answer, Refusal> {
        let state: VhostUserVringState = message.payload()?;
        let base = state.num;
        if base > u16::MAX.into() && !self.is_packed() {
            return Err(format!("{base:#x} is no index of a split ring"));
        }
        self.update(state.index, |vring, rings| vring.set_base(base, rings))
    }

    fn get_base(&mut self, message: &Message) -> Result<Answer, Refusal> {
        let VhostUserVringState { index, .. } = message.payload()?;
        let rings = &mut *self.rings;
        let next = find(&mut self.vrings, index)?.stop(rings);
        let state = VhostUserVringState::new(index, next);
        Ok(Answer::Bytes(state.as_slice().to_vec()))
    }

    fn set_fd(
        &mut self,
        request: FrontendReq,
        message: &Message,
        fds: Handed,
    ) -> Result<Answer, Refusal> {
        let VhostUserU64 { value } = message.payload()?;
        let fd = if value & NO_FD == 0 {
            Some(fds.into_event()?)
        } else if fds.is_empty() {
            None
        } else {
            return Err("it says that it has no descriptor and has one".to_owned());
        };
        let index = (value & 0xff) as u32;
        if value & !(NO_FD | 0xff) != 0 {
            return Err(format!("{value:#x} is no queue"));
        }
        self.update(index, |vring, rings| match request {
            FrontendReq::SET_VRING_KICK => {
                let kick = fd.map_or(Kick::Polled, |fd| Kick::Event(Arc::new(fd)));
                vring.set_kick(kick, rings);
            }
            FrontendReq::SET_VRING_CALL => vring.set_call(fd, rings),
            _ => vring.set_error(fd),
        })
    }

    fn set_enable(&mut self, message: &Message) -> Result<Answer, Refusal> {
        let state: VhostUserVringState = message.payload()?;
        let enabled = match state.num {
            0 => false,
            1 => true,
            other => return Err(format!("{other} is neither on (1) nor off (0)")),
        };
        self.update(state.index, |vring, rings| {
            vring.set_enabled(enabled, rings);
        })
    }

    fn set_mtu(&mut self, message: &Message) -> Result<Answer, Refusal> {
        let VhostUserU64 { value } = message.payload()?;
        let max = self.config.mtu.map_or(u64::from(u16::MAX), u64::from);
        if (MIN_MTU..=max).contains(&value) {
            Ok(Answer::Done)
        } else {
            Err(format!(
                "an MTU of {value}; {MIN_MTU} to {max} is accepted here"
            ))
        }
    }

    /// Changes one queue, then moves it to where it should be.
    fn update(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut Vring, &mut dyn Rings),
    ) -> Result<Answer, Refusal> {
        let rings = &mut *self.rings;
        let vring = find(&mut self.vrings, index)?;
        change(vring, rings);
        vring.advance(&self.device, rings);
        Ok(Answer::Done)
    }

    fn advance_all(&mut self) {
        for vring in &mut self.vrings {
            vring.advance(&self.device, self.rings);
        }
    }

    /// Fetches the rings that broke at work.
    pub(super) fn collect_broken(&mut self) -> Result<(), SessionEnd> {
        for vring in &mut self.vrings {
            vring.park(self.rings);
        }
        if self.device.memory.poisoned() {
            return Err(SessionEnd::MemoryLost);
        }
        self.advance_all();
        self.report_link();
        Ok(())
    }

    fn stop_rings(&mut self) {
        for vring in &mut self.vrings {
            vring.stop(self.rings);
        }
    }

    /// The end: every ring comes back.
    pub(super) fn stop_all(&mut self) {
        self.stop_rings();
        self.report_link();
    }

    fn report_link(&mut self) {
        let up = self
            .vrings
            .chunks_exact(2)
            .any(|pair| pair.iter().all(|vring| vring.usable(&self.device)));
        if up != self.link_up {
            self.link_up = up;
            self.rings.event(if up {
                SessionEvent::LinkUp
            } else {
                SessionEvent::LinkDown
            });
        }
    }

    fn complain(&mut self, complaint: &str) {
        self.complaints = self.complaints.saturating_add(1);
        if self.complaints <= LOUD_COMPLAINTS {
            tracing::warn!("{complaint}");
        } else {
            tracing::debug!("{complaint}");
        }
    }
}

/// Whether a request is answered with a value of its own, which cannot say that it failed.
fn has_own_answer(code: u32) -> bool {
    use FrontendReq as R;
    FrontendReq::try_from(code).is_ok_and(|request| {
        matches!(
            request,
            R::GET_FEATURES
                | R::GET_PROTOCOL_FEATURES
                | R::GET_QUEUE_NUM
                | R::GET_VRING_BASE
                | R::GET_MAX_MEM_SLOTS
                | R::GET_CONFIG
                | R::GET_INFLIGHT_FD
                | R::GET_STATUS
                | R::GET_SHARED_OBJECT
                | R::SET_DEVICE_STATE_FD
                | R::CHECK_DEVICE_STATE
                | R::GET_SHMEM_CONFIG
                | R::SET_LOG_BASE
                | R::POSTCOPY_ADVISE
                | R::POSTCOPY_END
                | R::CREATE_CRYPTO_SESSION
        )
    })
}

fn number(value: u64) -> Answer {
    Answer::Bytes(value.to_ne_bytes().to_vec())
}

fn find(vrings: &mut [Vring], index: u32) -> Result<&mut Vring, Refusal> {
    let count = vrings.len();
    usize::try_from(index)
        .ok()
        .and_then(|index| vrings.get_mut(index))
        .ok_or_else(|| format!("there is no queue {index}; the port has {count}"))
}

fn spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest: GuestAddr(region.guest_phys_addr),
        size: region.memory_size,
        user: UserAddr(region.user_addr),
        offset: region.mmap_offset,
    }
}

fn map(
    memory: &GuestMemory,
    region: &VhostUserMemoryRegion,
    fd: BorrowedFd<'_>,
) -> Result<GuestMemory, Refusal> {
    let region = Region::map(spec(region), fd).map_err(refusal)?;
    memory.with(Arc::new(region)).map_err(refusal)
}

/// An error and what caused it, on one line.
fn refusal(error: impl std::error::Error) -> Refusal {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

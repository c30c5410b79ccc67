//! How to attach a guest to a port: QEMU's command line and libvirt's XML.
//!
//! Roles are complementary: where the switch listens, QEMU connects and keeps reconnecting. The
//! guest's memory must be shared, or the switch cannot see it; that is half of what is printed,
//! because it is what people miss.

use vswitch_api::config::{Mac, PortKind, SocketMode, VhostUser};
use vswitch_api::rpc::PortDetail;

use super::CtlError;

/// Queue sizes that QEMU accepts for virtio-net.
const QEMU_QUEUE: std::ops::RangeInclusive<u16> = 256..=1024;

fn vhost_user(detail: &PortDetail) -> Result<&VhostUser, CtlError> {
    match &detail.config.kind {
        PortKind::VhostUser(vhost_user) => Ok(vhost_user),
        PortKind::Dpdk(dpdk) => Err(CtlError::Usage(format!(
            "port {} is the device {}, no guest attaches to it; choose a vhost-user port",
            detail.status.name, dpdk.device
        ))),
    }
}

/// The address of the guest: the configured one, or one that is derived from the port's name, so
/// that guests do not all get QEMU's default.
fn mac(detail: &PortDetail, vhost_user: &VhostUser) -> Mac {
    vhost_user.mac.unwrap_or_else(|| {
        // FNV-1a: the same name gives the same address on every host and in every version.
        let hash = detail
            .status
            .name
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            });
        let [a, b, c, _] = hash.to_be_bytes();
        Mac([0x52, 0x54, 0x00, a, b, c])
    })
}

fn queue_size(vhost_user: &VhostUser) -> u16 {
    vhost_user
        .ring_size
        .clamp(*QEMU_QUEUE.start(), *QEMU_QUEUE.end())
}

fn too_small(vhost_user: &VhostUser) -> Option<String> {
    let least = QEMU_QUEUE.start();
    (vhost_user.ring_size < *least).then(|| {
        format!(
            "the port's `ring-size` is below {least}, QEMU's smallest ring; raise it to {least}"
        )
    })
}

/// A command for a shell.
pub(super) fn qemu(detail: &PortDetail) -> Result<String, CtlError> {
    let vhost_user = vhost_user(detail)?;
    let name = &detail.status.name;
    let pairs = vhost_user.queue_pairs;
    // A comma ends an option of QEMU's, two are one.
    let path = vhost_user.socket.to_string_lossy().replace(',', ",,");
    let (role, who) = match vhost_user.mode {
        SocketMode::Server => (
            "reconnect=1",
            "The switch listens; QEMU connects, again and again.",
        ),
        SocketMode::Client => ("server=on,wait=off", "QEMU listens; the switch connects."),
    };
    let mut device = format!(
        "virtio-net-pci,netdev=net-{name},mac={}",
        mac(detail, vhost_user)
    );
    if pairs > 1 {
        // Two interrupts a pair, one for configuration, one for the control queue.
        device += &format!(",mq=on,vectors={}", u32::from(pairs) * 2 + 2);
    }
    let size = queue_size(vhost_user);
    device += &format!(",rx_queue_size={size},tx_queue_size={size}");
    if detail.mtu != 1500 {
        device += &format!(",host_mtu={}", detail.mtu);
    }
    let mut notes = vec![
        format!("# A guest on port {name}. {who}"),
        "# Set the guest's memory in both places, and add disks as usual.".into(),
    ];
    if vhost_user.mac.is_none() {
        notes
            .push("# The address comes from the port's name; take another one if other hosts have such a port, too.".into());
    }
    notes.extend(too_small(vhost_user).map(|note| format!("# Attention: {note}.")));
    let options = [
        "qemu-system-x86_64".into(),
        "-machine q35,accel=kvm:tcg,memory-backend=mem0".into(),
        "-m 1G".into(),
        "-object memory-backend-memfd,id=mem0,size=1G,share=on".into(),
        format!(
            "-chardev {}",
            quoted(&format!("socket,id=chr-{name},path={path},{role}"))
        ),
        format!("-netdev vhost-user,id=net-{name},chardev=chr-{name},queues={pairs}"),
        format!("-device {device}"),
    ];
    Ok(format!(
        "{}\n{}\n",
        notes.join("\n"),
        options.join(" \\\n  ")
    ))
}

/// As a word for the shell.
fn quoted(word: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "=,./-_:@+%".contains(c);
    if word.chars().all(safe) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Two elements of a domain.
pub(super) fn libvirt(detail: &PortDetail) -> Result<String, CtlError> {
    let vhost_user = vhost_user(detail)?;
    let name = &detail.status.name;
    let path = escaped(&vhost_user.socket.to_string_lossy());
    // libvirt's `mode` is QEMU's role.
    let source = match vhost_user.mode {
        SocketMode::Server => format!(
            "<source type='unix' path='{path}' mode='client'>\n    <reconnect enabled='yes' timeout='1'/>\n  </source>"
        ),
        SocketMode::Client => format!("<source type='unix' path='{path}' mode='server'/>"),
    };
    let size = queue_size(vhost_user);
    let pairs = match vhost_user.queue_pairs {
        1 => String::new(),
        n => format!("queues='{n}' "),
    };
    let mtu = match detail.mtu {
        1500 => String::new(),
        mtu => format!("  <mtu size='{mtu}'/>\n"),
    };
    let note = too_small(vhost_user)
        .map(|note| format!("<!-- Attention: {note}. -->\n"))
        .unwrap_or_default();
    Ok(format!(
        "{note}<!-- Below <domain>: the switch must see the guest's memory. -->\n\
         <memoryBacking>\n  <source type='memfd'/>\n  <access mode='shared'/>\n</memoryBacking>\n\n\
         <!-- Below <devices>: port {name}. -->\n\
         <interface type='vhostuser'>\n  <mac address='{}'/>\n  {source}\n  <model type='virtio'/>\n  \
         <driver {pairs}rx_queue_size='{size}' tx_queue_size='{size}'/>\n{mtu}</interface>\n",
        mac(detail, vhost_user)
    ))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::detail;
    use super::*;
    use crate::ctl::expect;

    #[test]
    fn for_qemu() {
        expect("qemu-server.txt", &qemu(&detail()).unwrap());
        let mut other = detail();
        other.mtu = 9000;
        if let PortKind::VhostUser(vhost_user) = &mut other.config.kind {
            vhost_user.mode = SocketMode::Client;
            vhost_user.queue_pairs = 4;
            vhost_user.ring_size = 128;
            vhost_user.mac = Some(Mac([2, 0, 0, 0, 0, 1]));
            vhost_user.socket = "/run/odd name,'x'/vm.sock".into();
        }
        expect("qemu-client.txt", &qemu(&other).unwrap());
        expect("libvirt-client.txt", &libvirt(&other).unwrap());
    }

    #[test]
    fn for_libvirt() {
        expect("libvirt-server.txt", &libvirt(&detail()).unwrap());
    }

    #[test]
    fn devices_have_no_guest() {
        let mut nic = detail();
        nic.config.kind = PortKind::Dpdk(vswitch_api::config::DpdkPort::new("net_null0"));
        assert!(
            qemu(&nic)
                .unwrap_err()
                .to_string()
                .contains("choose a vhost-user port")
        );
        assert!(libvirt(&nic).is_err());
    }
}

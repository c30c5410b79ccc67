//! Device arguments: the strings by which EAL knows devices, and what each needs of the host.
//!
//! `NAME[,key=value…]`, where the name is a PCI address, or a virtual device's driver and number
//! such as `net_tap0`. A prefix `pci:` or `vdev:` may name the bus.

use std::fmt;
use std::str::FromStr;

/// A device argument whose form was checked; whether the device exists shows when it is probed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DeviceArg {
    text: String,
}

/// What is wrong with the form of a device argument.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeviceArgError {
    /// Nothing before the first comma.
    #[error("a device argument starts with a name, such as net_tap0 or a PCI address 0000:3b:00.0")]
    NoName,
    /// Longer than DPDK's buffer for names.
    #[error("the device name '{name}' is too long: DPDK takes up to {max} bytes")]
    LongName {
        /// The name as given.
        name: String,
        /// The longest it may be.
        max: usize,
    },
    /// White space or control characters, which no driver takes.
    #[error("the device argument '{text}' has white space or control characters in it")]
    Characters {
        /// The argument, escaped.
        text: String,
    },
}

/// Which bus a device hangs off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bus {
    /// A PCI address.
    Pci,
    /// A virtual device, made by a driver from its name.
    Virtual,
    /// A name that says neither; EAL will find out.
    Other,
}

impl DeviceArg {
    /// The argument as given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What stands before the first comma.
    pub fn name(&self) -> &str {
        self.text.split(',').next().unwrap_or_default()
    }

    /// The value of `key=` among the arguments.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        let pairs = self
            .text
            .split(',')
            .skip(1)
            .filter_map(|pair| pair.split_once('='));
        pairs.filter(|(k, _)| *k == key).map(|(_, v)| v).last()
    }

    /// The bus, judged by the name.
    pub fn bus(&self) -> Bus {
        let name = self.name();
        if let Some((bus, _)) = name.split_once(':').filter(|(bus, _)| !is_hex(bus)) {
            return match bus {
                "pci" => Bus::Pci,
                "vdev" => Bus::Virtual,
                _ => Bus::Other,
            };
        }
        if is_pci_address(name) {
            Bus::Pci
        } else if name.starts_with("net_") || name.starts_with("eth_") {
            Bus::Virtual
        } else {
            Bus::Other
        }
    }

    /// True if EAL must be started with the PCI bus on, and with hugepages, for this device.
    pub fn needs_pci(&self) -> bool {
        self.bus() == Bus::Pci
    }

    /// What a process without privileges lacks for this device, as half a sentence; `None` if
    /// nothing.
    pub fn privilege(&self) -> Option<&'static str> {
        let name = self.name();
        let name = name.strip_prefix("vdev:").unwrap_or(name);
        if self.needs_pci() {
            Some("a PCI device needs a binding to vfio-pci, access to /dev/vfio and hugepages")
        } else if name.starts_with("net_tap") || name.starts_with("net_tun") {
            Some("a tap needs /dev/net/tun and CAP_NET_ADMIN")
        } else if name.starts_with("net_af_packet") || name.starts_with("eth_af_packet") {
            Some("a packet socket needs CAP_NET_RAW and an existing interface (iface=NAME)")
        } else if name.starts_with("net_af_xdp") {
            Some("AF_XDP needs CAP_NET_RAW, CAP_BPF and an existing interface (iface=NAME)")
        } else {
            None
        }
    }

    /// What to look at when the device cannot be attached.
    pub(crate) fn hint(&self) -> &'static str {
        self.privilege().unwrap_or(match self.bus() {
            Bus::Other => "known are PCI addresses and virtual devices such as net_tap0",
            _ => {
                "check the name (driver and number, as in net_null0), that the driver's package is \
                 installed (librte-net-…), and the arguments after the comma"
            }
        })
    }
}

impl FromStr for DeviceArg {
    type Err = DeviceArgError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(DeviceArgError::Characters {
                text: text.escape_debug().to_string(),
            });
        }
        let device = Self {
            text: text.to_owned(),
        };
        let max = dpdk_sys::DPDK_DEV_NAME_MAX_LEN as usize - 1;
        match device.name() {
            "" => Err(DeviceArgError::NoName),
            name if name.len() > max => Err(DeviceArgError::LongName {
                name: name.into(),
                max,
            }),
            _ => Ok(device),
        }
    }
}

impl fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether a device argument names a PCI device; false for one that is malformed.
pub fn needs_pci(device: &str) -> bool {
    device
        .parse::<DeviceArg>()
        .is_ok_and(|device| device.needs_pci())
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// `[domain:]bus:device.function`, in hex.
fn is_pci_address(name: &str) -> bool {
    let Some((path, function)) = name.rsplit_once('.') else {
        return false;
    };
    let fields: Vec<&str> = path.split(':').collect();
    let widths: &[usize] = match fields.len() {
        2 => &[2, 2],
        3 => &[8, 2, 2],
        _ => return false,
    };
    is_hex(function)
        && function.len() == 1
        && fields
            .iter()
            .zip(widths)
            .all(|(field, width)| is_hex(field) && field.len() <= *width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buses() {
        let cases = [
            ("0000:3b:00.0", Bus::Pci),
            ("3b:00.1,mprq_en=1", Bus::Pci),
            ("pci:0000:3b:00.0", Bus::Pci),
            ("10000:01:00.0", Bus::Pci),
            ("net_tap0", Bus::Virtual),
            ("vdev:net_null0", Bus::Virtual),
            ("net_af_packet0,iface=0000:3b:00.0", Bus::Virtual),
            ("auxiliary:mlx5_core.sf.2", Bus::Other),
            ("eth0", Bus::Other),
            ("3b:00", Bus::Other),
            ("1:2:3:4.5", Bus::Other),
        ];
        for (text, bus) in cases {
            let device: DeviceArg = text.parse().unwrap();
            assert_eq!(device.bus(), bus, "{text}");
            assert_eq!(needs_pci(text), bus == Bus::Pci, "{text}");
        }
    }

    #[test]
    fn forms() {
        assert_eq!("".parse::<DeviceArg>(), Err(DeviceArgError::NoName));
        assert_eq!(",iface=x".parse::<DeviceArg>(), Err(DeviceArgError::NoName));
        assert!(matches!(
            "a\0b".parse::<DeviceArg>(),
            Err(DeviceArgError::Characters { .. })
        ));
        assert!("net_tap0, iface=x".parse::<DeviceArg>().is_err());
        let long = format!("net_tap{}", "0".repeat(100));
        assert!(matches!(
            long.parse::<DeviceArg>(),
            Err(DeviceArgError::LongName { max: 63, .. })
        ));
    }

    #[test]
    fn arguments_of_a_device() {
        let device: DeviceArg = "net_null0,size=64,copy=1,size=9000".parse().unwrap();
        assert_eq!(device.name(), "net_null0");
        assert_eq!(device.value("size"), Some("9000"));
        assert_eq!(device.value("iface"), None);
    }

    #[test]
    fn privileges() {
        let privilege = |text: &str| text.parse::<DeviceArg>().unwrap().privilege();
        assert!(privilege("net_tap0").unwrap().contains("CAP_NET_ADMIN"));
        assert!(
            privilege("net_af_packet0,iface=eth0")
                .unwrap()
                .contains("CAP_NET_RAW")
        );
        assert!(privilege("3b:00.0").unwrap().contains("vfio"));
        assert_eq!(privilege("net_ring0"), None);
    }
}

/*
 * What bindgen reads: the DPDK headers in use, and the little that Rust cannot take from a header.
 *
 * Three kinds of things are here and nothing else: functions that DPDK only has `static inline`
 * or behind a macro; constants that are function-like macros; and whatever changes its C layout
 * between the supported releases (bit fields, anonymous unions), so that the Rust side is the
 * same for all of them.
 */
#ifndef VSWITCH_DPDK_SHIM_H
#define VSWITCH_DPDK_SHIM_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mbuf_pool_ops.h>
#include <rte_mempool.h>
#include <rte_version.h>

/* Where the fields of a packet buffer are. The struct itself stays opaque to Rust: its fields sit
 * in anonymous unions that differ between releases. Widths are checked in shim.c. */
enum {
	DPDK_MBUF_BUF_ADDR = offsetof(struct rte_mbuf, buf_addr),     /* void * */
	DPDK_MBUF_DATA_OFF = offsetof(struct rte_mbuf, data_off),     /* u16 */
	DPDK_MBUF_NB_SEGS = offsetof(struct rte_mbuf, nb_segs),       /* u16 */
	DPDK_MBUF_OL_FLAGS = offsetof(struct rte_mbuf, ol_flags),     /* u64 */
	DPDK_MBUF_PKT_LEN = offsetof(struct rte_mbuf, pkt_len),       /* u32 */
	DPDK_MBUF_DATA_LEN = offsetof(struct rte_mbuf, data_len),     /* u16 */
	DPDK_MBUF_VLAN_TCI = offsetof(struct rte_mbuf, vlan_tci),     /* u16 */
	DPDK_MBUF_RSS_HASH = offsetof(struct rte_mbuf, hash),         /* u32, first of a union */
	DPDK_MBUF_BUF_LEN = offsetof(struct rte_mbuf, buf_len),       /* u16 */
	DPDK_MBUF_NEXT = offsetof(struct rte_mbuf, next),             /* struct rte_mbuf * */
	DPDK_MBUF_POOL = offsetof(struct rte_mbuf, pool),             /* struct rte_mempool * */
	DPDK_MBUF_TX_OFFLOAD = offsetof(struct rte_mbuf, tx_offload), /* u64 */
	DPDK_MBUF_SIZE = sizeof(struct rte_mbuf),
};

/* Widths in bits of the lengths packed into tx_offload, lowest first. */
enum {
	DPDK_TX_L2_LEN_BITS = RTE_MBUF_L2_LEN_BITS,
	DPDK_TX_L3_LEN_BITS = RTE_MBUF_L3_LEN_BITS,
	DPDK_TX_L4_LEN_BITS = RTE_MBUF_L4_LEN_BITS,
	DPDK_TX_TSO_SEGSZ_BITS = RTE_MBUF_TSO_SEGSZ_BITS,
};

static const uint64_t DPDK_RX_OFFLOAD_IPV4_CKSUM = RTE_ETH_RX_OFFLOAD_IPV4_CKSUM;
static const uint64_t DPDK_RX_OFFLOAD_UDP_CKSUM = RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
static const uint64_t DPDK_RX_OFFLOAD_TCP_CKSUM = RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
static const uint64_t DPDK_RX_OFFLOAD_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;
static const uint64_t DPDK_RX_OFFLOAD_RSS_HASH = RTE_ETH_RX_OFFLOAD_RSS_HASH;
static const uint64_t DPDK_TX_OFFLOAD_IPV4_CKSUM = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
static const uint64_t DPDK_TX_OFFLOAD_UDP_CKSUM = RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
static const uint64_t DPDK_TX_OFFLOAD_TCP_CKSUM = RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
static const uint64_t DPDK_TX_OFFLOAD_TCP_TSO = RTE_ETH_TX_OFFLOAD_TCP_TSO;
static const uint64_t DPDK_TX_OFFLOAD_MULTI_SEGS = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
static const uint64_t DPDK_TX_OFFLOAD_FAST_FREE = RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;

/* What of a frame a device hashes to choose a receive queue. */
static const uint64_t DPDK_RSS_IPV4 = RTE_ETH_RSS_IPV4;
static const uint64_t DPDK_RSS_FRAG_IPV4 = RTE_ETH_RSS_FRAG_IPV4;
static const uint64_t DPDK_RSS_NONFRAG_IPV4_TCP = RTE_ETH_RSS_NONFRAG_IPV4_TCP;
static const uint64_t DPDK_RSS_NONFRAG_IPV4_UDP = RTE_ETH_RSS_NONFRAG_IPV4_UDP;
static const uint64_t DPDK_RSS_NONFRAG_IPV4_SCTP = RTE_ETH_RSS_NONFRAG_IPV4_SCTP;
static const uint64_t DPDK_RSS_NONFRAG_IPV4_OTHER = RTE_ETH_RSS_NONFRAG_IPV4_OTHER;
static const uint64_t DPDK_RSS_IPV6 = RTE_ETH_RSS_IPV6;
static const uint64_t DPDK_RSS_FRAG_IPV6 = RTE_ETH_RSS_FRAG_IPV6;
static const uint64_t DPDK_RSS_NONFRAG_IPV6_TCP = RTE_ETH_RSS_NONFRAG_IPV6_TCP;
static const uint64_t DPDK_RSS_NONFRAG_IPV6_UDP = RTE_ETH_RSS_NONFRAG_IPV6_UDP;
static const uint64_t DPDK_RSS_NONFRAG_IPV6_SCTP = RTE_ETH_RSS_NONFRAG_IPV6_SCTP;
static const uint64_t DPDK_RSS_NONFRAG_IPV6_OTHER = RTE_ETH_RSS_NONFRAG_IPV6_OTHER;
static const uint64_t DPDK_RSS_IPV6_EX = RTE_ETH_RSS_IPV6_EX;
static const uint64_t DPDK_RSS_IPV6_TCP_EX = RTE_ETH_RSS_IPV6_TCP_EX;
static const uint64_t DPDK_RSS_IPV6_UDP_EX = RTE_ETH_RSS_IPV6_UDP_EX;

static const uint64_t DPDK_MBUF_RX_VLAN_STRIPPED = RTE_MBUF_F_RX_VLAN_STRIPPED;
static const uint64_t DPDK_MBUF_RX_RSS_HASH = RTE_MBUF_F_RX_RSS_HASH;
static const uint64_t DPDK_MBUF_RX_IP_CKSUM_MASK = RTE_MBUF_F_RX_IP_CKSUM_MASK;
static const uint64_t DPDK_MBUF_RX_IP_CKSUM_BAD = RTE_MBUF_F_RX_IP_CKSUM_BAD;
static const uint64_t DPDK_MBUF_RX_IP_CKSUM_GOOD = RTE_MBUF_F_RX_IP_CKSUM_GOOD;
static const uint64_t DPDK_MBUF_RX_IP_CKSUM_NONE = RTE_MBUF_F_RX_IP_CKSUM_NONE;
static const uint64_t DPDK_MBUF_RX_L4_CKSUM_MASK = RTE_MBUF_F_RX_L4_CKSUM_MASK;
static const uint64_t DPDK_MBUF_RX_L4_CKSUM_BAD = RTE_MBUF_F_RX_L4_CKSUM_BAD;
static const uint64_t DPDK_MBUF_RX_L4_CKSUM_GOOD = RTE_MBUF_F_RX_L4_CKSUM_GOOD;
static const uint64_t DPDK_MBUF_RX_L4_CKSUM_NONE = RTE_MBUF_F_RX_L4_CKSUM_NONE;
static const uint64_t DPDK_MBUF_TX_IPV4 = RTE_MBUF_F_TX_IPV4;
static const uint64_t DPDK_MBUF_TX_IPV6 = RTE_MBUF_F_TX_IPV6;
static const uint64_t DPDK_MBUF_TX_IP_CKSUM = RTE_MBUF_F_TX_IP_CKSUM;
static const uint64_t DPDK_MBUF_TX_TCP_CKSUM = RTE_MBUF_F_TX_TCP_CKSUM;
static const uint64_t DPDK_MBUF_TX_UDP_CKSUM = RTE_MBUF_F_TX_UDP_CKSUM;
static const uint64_t DPDK_MBUF_TX_TCP_SEG = RTE_MBUF_F_TX_TCP_SEG;

/* Apart, because a negative value makes the whole enum signed. */
enum { DPDK_SOCKET_ID_ANY = SOCKET_ID_ANY };

enum {
	DPDK_MAX_LCORE = RTE_MAX_LCORE,
	DPDK_MAX_ETHPORTS = RTE_MAX_ETHPORTS,
	DPDK_DEV_NAME_MAX_LEN = RTE_DEV_NAME_MAX_LEN,
	DPDK_PKTMBUF_HEADROOM = RTE_PKTMBUF_HEADROOM,
	DPDK_MBUF_DEFAULT_DATAROOM = RTE_MBUF_DEFAULT_DATAROOM,
	DPDK_MEMPOOL_CACHE_MAX_SIZE = RTE_MEMPOOL_CACHE_MAX_SIZE,
	DPDK_RETA_GROUP_SIZE = RTE_ETH_RETA_GROUP_SIZE,
};

/* Link state, without the bit fields. Speed in Mb/s; UINT32_MAX: the device does not know. */
struct dpdk_link {
	uint32_t speed_mbps;
	uint8_t up;
	uint8_t full_duplex;
};

typedef ssize_t (*dpdk_log_write)(void *cookie, const char *text, size_t len);

/* The calling thread's rte_errno. */
int dpdk_errno(void);
/* A stdio stream whose every flush calls `write`; NULL without memory. */
FILE *dpdk_log_stream(dpdk_log_write write);

uint16_t dpdk_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t n);
uint16_t dpdk_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t n);
uint16_t dpdk_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t n);
/* 1 if frames wait to be sent or are being sent, 0 if all are, -1 if the driver cannot tell. */
int dpdk_tx_pending(uint16_t port, uint16_t queue);

/* A pool of `n` buffers with `room` bytes each, headroom included; NULL and rte_errno. Buffers may
 * lie across pages wherever addresses for devices are virtual ones: DPDK's own function
 * keeps pages apart even then, and without hugepages gives each buffer a page of its own. */
struct rte_mempool *dpdk_pool_create(const char *name, unsigned int n, unsigned int cache,
				     uint16_t room, int socket);
/* All `n` or none; 0 or a negative errno. Buffers come reset: empty, one segment, no flags. */
int dpdk_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int n);
/* Frees a whole chain. */
void dpdk_mbuf_free(struct rte_mbuf *mbuf);

/* Toeplitz hash of `n` words, each as a number, under a key of 40 bytes. For tests of our own. */
uint32_t dpdk_softrss(const uint32_t *words, uint32_t n, const uint8_t key[40]);

/* Has the configuration ask for receive interrupts; a bit field. */
void dpdk_conf_rx_interrupts(struct rte_eth_conf *conf, int on);

int dpdk_link_get(uint16_t port, struct dpdk_link *link);
int dpdk_mac_get(uint16_t port, uint8_t mac[6]);

#endif

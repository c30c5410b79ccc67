#include "shim.h"

#include <string.h>

#include <rte_thash.h>

#define FIELD_IS(field, bytes) \
	_Static_assert(sizeof(((struct rte_mbuf *)0)->field) == (bytes), \
		       "struct rte_mbuf: the width of " #field " changed")
FIELD_IS(buf_addr, sizeof(void *));
FIELD_IS(data_off, 2);
FIELD_IS(nb_segs, 2);
FIELD_IS(ol_flags, 8);
FIELD_IS(pkt_len, 4);
FIELD_IS(data_len, 2);
FIELD_IS(vlan_tci, 2);
FIELD_IS(hash.rss, 4);
FIELD_IS(buf_len, 2);
FIELD_IS(next, sizeof(void *));
FIELD_IS(pool, sizeof(void *));
FIELD_IS(tx_offload, 8);
_Static_assert(offsetof(struct rte_mbuf, hash) == offsetof(struct rte_mbuf, hash.rss),
	       "struct rte_mbuf: the RSS hash is no longer first in its union");

int dpdk_errno(void)
{
	return rte_errno;
}

FILE *dpdk_log_stream(dpdk_log_write write)
{
	return fopencookie(NULL, "w", (cookie_io_functions_t){ .write = write });
}

uint16_t dpdk_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t n)
{
	return rte_eth_rx_burst(port, queue, mbufs, n);
}

uint16_t dpdk_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t n)
{
	return rte_eth_tx_burst(port, queue, mbufs, n);
}

uint16_t dpdk_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t n)
{
	return rte_eth_tx_prepare(port, queue, mbufs, n);
}

int dpdk_tx_pending(uint16_t port, uint16_t queue)
{
	/* Places are counted from the next free one on, so those in use are the last of the ring. Its
	 * size is the driver's; beyond it there is -EINVAL. */
	for (uint16_t offset = 0; offset < UINT16_MAX; offset++) {
		int status = rte_eth_tx_descriptor_status(port, queue, offset);
		if (status == RTE_ETH_TX_DESC_FULL)
			return 1;
		if (status < 0)
			return status == -EINVAL && offset > 0 ? 0 : -1;
	}
	return 0;
}

struct rte_mempool *dpdk_pool_create(const char *name, unsigned int n, unsigned int cache,
				     uint16_t room, int socket)
{
	struct rte_pktmbuf_pool_private private = { .mbuf_data_room_size = room };
	unsigned int flags =
		rte_eal_iova_mode() == RTE_IOVA_VA ? RTE_MEMPOOL_F_NO_IOVA_CONTIG : 0;
	struct rte_mempool *pool = rte_mempool_create_empty(
		name, n, sizeof(struct rte_mbuf) + room, cache, sizeof(private), socket, flags);
	if (pool == NULL)
		return NULL;

	int err = rte_mempool_set_ops_byname(pool, rte_mbuf_best_mempool_ops(), NULL);
	if (err == 0) {
		rte_pktmbuf_pool_init(pool, &private);
		err = rte_mempool_populate_default(pool);
	}
	if (err < 0) {
		rte_mempool_free(pool);
		rte_errno = -err;
		return NULL;
	}
	rte_mempool_obj_iter(pool, rte_pktmbuf_init, NULL);
	return pool;
}

int dpdk_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int n)
{
	return rte_pktmbuf_alloc_bulk(pool, mbufs, n);
}

void dpdk_mbuf_free(struct rte_mbuf *mbuf)
{
	rte_pktmbuf_free(mbuf);
}

void dpdk_conf_rx_interrupts(struct rte_eth_conf *conf, int on)
{
	conf->intr_conf.rxq = on != 0;
}

int dpdk_link_get(uint16_t port, struct dpdk_link *link)
{
	struct rte_eth_link raw;
	memset(&raw, 0, sizeof(raw));
	int err = rte_eth_link_get_nowait(port, &raw);
	link->speed_mbps = raw.link_speed;
	link->up = raw.link_status == RTE_ETH_LINK_UP;
	link->full_duplex = raw.link_duplex == RTE_ETH_LINK_FULL_DUPLEX;
	return err;
}

int dpdk_mac_get(uint16_t port, uint8_t mac[6])
{
	struct rte_ether_addr raw;
	int err = rte_eth_macaddr_get(port, &raw);
	if (err == 0)
		memcpy(mac, raw.addr_bytes, 6);
	return err;
}

uint32_t dpdk_softrss(const uint32_t *words, uint32_t n, const uint8_t key[40])
{
	/* Not written to, though not declared so; the key is read in words. */
	uint32_t aligned[10];

	memcpy(aligned, key, sizeof(aligned));
	return rte_softrss((uint32_t *)(uintptr_t)words, n, (const uint8_t *)aligned);
}

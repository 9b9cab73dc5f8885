/* One VMBus ring in shared memory: wire layout (ring_layout.h), the writer's side (ring_writer.h), the reader's side
 * (ring_reader.h). No Python, no system call.
 *
 *   @0    write_index       owned by the writer          header page: 4096 bytes
 *   @4    read_index        owned by the reader
 *   @8    interrupt_mask    owned by the reader; non-zero: do not signal me for new data
 *   @12   pending_send_sz   owned by the writer; free bytes wanted before the reader signals it, 0: none
 *   @64   feature bits      owned by the writer; bit 0: the writer uses pending_send_sz
 *   @4096 data              whole pages, circular
 *
 * The peer is another process and hostile: everything that it can write is checked at every load, a descriptor is copied
 * once and only the copy is used, and each side keeps its own index privately, so that scribbling on it changes nothing.
 *
 * The hot functions are inline: a call costs as much as the work that they do.
 *
 * Sources: Linux include/linux/hyperv.h and drivers/hv/ring_buffer.c; openvmm vm/devices/vmbus/vmbus_ring. */
#ifndef PARTVISOR_RING_H
#define PARTVISOR_RING_H

#include "ring_reader.h"
#include "ring_writer.h"

#endif

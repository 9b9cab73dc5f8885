// C11 atomics as Relacy simulates them, so that it can compile bus/native/ring.h itself and try its interleavings.
#ifndef PARTVISOR_MODEL_ATOMICS_HPP
#define PARTVISOR_MODEL_ATOMICS_HPP

#include <relacy/relacy.hpp>

#include <cstdint>

// The standard library got these macros, too; Relacy's own names stay.
using ring_field = rl::atomic<uint32_t>;

#define memory_order_relaxed rl::mo_relaxed
#define memory_order_acquire rl::mo_acquire
#define memory_order_release rl::mo_release
#define memory_order_seq_cst rl::mo_seq_cst

#define atomic_load_explicit(field, order) ((field)->load((order), $))
#define atomic_store_explicit(field, value, order) ((field)->store((value), (order), $))
#define atomic_thread_fence(order) rl::atomic_thread_fence((order), $)
#define atomic_signal_fence(order) ((void)0)

#endif

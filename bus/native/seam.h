/* Seams: named steps of a server's work at which its process can be made to die, exactly there.
 *
 * A kill from outside hits some instant, and the short ones never. Recovery has to hold at all of them, so tests arm one
 * step and the process kills itself when it has come to it so many times. The memory outlives the process, as its journal
 * does. Not armed, a step costs one load of a line that nobody writes. bus/seam.py is the same for Python. */
#ifndef PARTVISOR_SEAM_H
#define PARTVISOR_SEAM_H

#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>

enum seam_step {
    SEAM_NONE = 0,
    SEAM_TAKE,       /* a request was seen in the ring */
    SEAM_EXECUTE,    /* it was executed, nothing was said of it */
    SEAM_COMMIT,     /* the journal says what will be published, and it is not */
    SEAM_PUBLISH,    /* the peer can see the answers, the requests are not released */
    SEAM_RELEASE,    /* they are; a signal may be owed */
    SEAM_SIGNAL,     /* a signal is owed, and is never given */
    SEAM_SAVE_STATE, /* half of a saved state is written */
    SEAM_SAVED,      /* a saved state counts, nothing that it decides has been done */
    SEAM_CARRY_OUT,  /* some of that was done, and what follows from it is not saved */
};

struct seam {
    _Atomic uint32_t step;   /* enum seam_step; SEAM_NONE: not armed */
    _Atomic uint32_t passes; /* until it strikes */
    _Atomic uint32_t period; /* what `passes` is set to for the next process, while */
    _Atomic uint32_t deaths; /* more than one are left */
    _Atomic uint32_t struck; /* enum seam_step: where the last process died, until its successor has read it */
};

_Static_assert(sizeof(struct seam) == 20, "bus/seam.py says the same");

__attribute__((noinline, cold, unused)) static void seam_reached(struct seam *seam, enum seam_step step)
{
    if (atomic_fetch_sub(&seam->passes, 1) != 1)
        return; /* not yet, or another thread of ours is dying of it at this moment */
    atomic_store(&seam->struck, (uint32_t)step);
    atomic_store(&seam->passes, atomic_load(&seam->period));
    if (atomic_fetch_sub(&seam->deaths, 1) == 1)
        atomic_store(&seam->step, SEAM_NONE);
    raise(SIGKILL); /* does not return: the signal is taken on the way out of the system call */
}

/* Die here if this is the step, and the pass. seam: NULL where nothing can be armed. */
static inline void seam_pass(struct seam *seam, enum seam_step step)
{
    if (seam && __builtin_expect(atomic_load_explicit(&seam->step, memory_order_relaxed) == (uint32_t)step, 0))
        seam_reached(seam, step);
}

#endif

"""A guest that breaks every rule within its reach, and reports what it got for each.

    program = "partitions.guests.hostile:main"      # a few of its attacks, one after the other
    program = "partitions.guests.hostile:campaign"  # what `partvisor attack` orders
    program = "partitions.guests.hostile:last"      # a system call that is to end it

Each module has the attacks on one thing; `attacks` has them all by name. For tests and for the curious: run it beside a
guest that works, and see that the other one does not notice.
"""

from partitions.guests.hostile.campaign import campaign as campaign
from partitions.guests.hostile.last_call import last as last
from partitions.guests.hostile.tour import main as main

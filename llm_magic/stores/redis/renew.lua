-- Prolongs the lease of a process that holds something.
redis.call('HSET', LEASES, H.owner, text(now + H.lease))
save()

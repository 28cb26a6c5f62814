-- Prolongs the lease of a process that holds something.
redis.call('HSET', OPEN, 'l' .. H.owner, text(clock + H.lease))
expire(OPEN, HISTORY + HOUR)

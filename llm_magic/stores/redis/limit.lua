-- Sets a limit for all kernels, or takes it away (an empty cap). KEYS: the scope's limits.
local YEAR = 400 * 86400 * 1000
if ARGV[2] == '' then
    redis.call('HDEL', KEYS[1], ARGV[1])
else
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    redis.call('PEXPIRE', KEYS[1], YEAR)
end

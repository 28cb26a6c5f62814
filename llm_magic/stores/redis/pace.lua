#!lua flags=allow-oom
-- One process meets the others who ask the same server and model.
--
-- KEYS: 1 who asks, by the end of its lease; 2 there while all must wait; 3 the run, if any.
-- ARGV: 1 its name; 2 its lease in ms, 0 where it does not ask; 3 ms for which it was told to wait;
--       4 how the run stands, or ''; 5 the part of it that begins, or ''; 6 ms that a run is known.
-- Gives: how many ask, ms for which all wait, how the run stands, how often the part has begun.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local lease, told, known = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[6])

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
if lease > 0 then
    redis.call('ZADD', KEYS[1], string.format('%.0f', now + lease), ARGV[1])
    redis.call('PEXPIRE', KEYS[1], lease)
end
if told > 0 and told > redis.call('PTTL', KEYS[2]) then
    redis.call('SET', KEYS[2], '1', 'PX', told)
end
local state, begun = '', 0
if KEYS[3] then
    if ARGV[4] ~= '' then
        -- A run that was stopped stays so, whatever is said late.
        if redis.call('HGET', KEYS[3], 'state') ~= 'stopped' then
            redis.call('HSET', KEYS[3], 'state', ARGV[4])
        end
        redis.call('PEXPIRE', KEYS[3], known)
    end
    state = redis.call('HGET', KEYS[3], 'state') or ''
    if state ~= '' and ARGV[5] ~= '' then
        begun = redis.call('HINCRBY', KEYS[3], 'part:' .. ARGV[5], 1)
    end
end
local held = math.max(0, redis.call('PTTL', KEYS[2]))
return {redis.call('ZCARD', KEYS[1]), held, state, begun}

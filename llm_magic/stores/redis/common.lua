#!lua flags=allow-oom
-- What every script of the ledger begins with: the scopes of a call, their windows and sums.
--
-- KEYS: 1 open, 2 leases, 3 flights; then the sums and the log of each scope; then, where a script
-- needs them, the usage of the user and of the kernel, the limits of the shared scopes, the calls.
-- ARGV: 1 the header as JSON; 2 what is asked, as JSON.
--
-- A log has a call as "requests tokens nanos id", by the moment when it was held. A window's sum is
-- that of the entries with t > floor; to look at it moves the floor and takes off what has left, so
-- that a hold costs the same with a hundred calls in the window and with a hundred thousand.
-- Moments and lengths are in microseconds: a double holds them exactly.
local H = cjson.decode(ARGV[1])
local OPEN, LEASES, FLIGHTS = KEYS[1], KEYS[2], KEYS[3]
local SECOND = 1000000
local HOUR, DAY = 3600 * SECOND, 86400 * SECOND
-- Calls are known for so long at least, so that a longer limit that is set later counts them.
local HISTORY = 25 * HOUR
local MONTH, YEAR = 30 * DAY, 400 * DAY

local function text(number)
    return string.format('%.0f', number)
end

local function expire(key, length)
    redis.call('PEXPIRE', key, text(math.ceil(length / 1000)))
end

local now
if H.clock then
    now = H.clock
else
    local time = redis.call('TIME')
    now = tonumber(time[1]) * SECOND + tonumber(time[2])
end

local scopes = {}

local function count(sum, entries, sign)
    for _, entry in ipairs(entries) do
        local requests, tokens, nanos = string.match(entry, '^(%d+) (%d+) (%d+) ')
        sum[1] = sum[1] + sign * requests
        sum[2] = sum[2] + sign * tokens
        sum[3] = sum[3] + sign * nanos
    end
end

-- The sum of a window, up to now. Length 0 is without end: all since the scope began.
local function window(scope, length)
    local sum = scope.windows[length]
    local floor = length > 0 and now - length or -1
    if not sum or (length > 0 and floor - sum.floor > length) then
        sum = { floor = floor, asked = now, 0, 0, 0 }
        scope.windows[length] = sum
        count(sum, redis.call('ZRANGEBYSCORE', scope.log, '(' .. text(floor), '+inf'), 1)
    elseif floor > sum.floor then
        local left = redis.call(
            'ZRANGEBYSCORE', scope.log, '(' .. text(sum.floor), text(floor))
        count(sum, left, -1)
        sum.floor = floor
    end
    return sum
end

for number = 1, H.scopes do
    local scope = {
        sums = KEYS[2 + 2 * number], log = KEYS[3 + 2 * number], windows = {}, leaving = {}
    }
    local stored = redis.call('HGETALL', scope.sums)
    for field = 1, #stored, 2 do
        if stored[field] == 'now' then
            -- Where the server's clock was set back, or another one took over: time stands still.
            now = math.max(now, tonumber(stored[field + 1]))
        else
            local floor, asked, requests, tokens, nanos = string.match(
                stored[field + 1], '(%S+) (%S+) (%S+) (%S+) (%S+)')
            scope.windows[tonumber(stored[field])] = {
                floor = tonumber(floor), asked = tonumber(asked),
                tonumber(requests), tonumber(tokens), tonumber(nanos),
            }
        end
    end
    scopes[number] = scope
end
for _, scope in ipairs(scopes) do
    window(scope, 0)
    local lengths = {}
    for length in pairs(scope.windows) do
        lengths[#lengths + 1] = length
    end
    for _, length in ipairs(lengths) do
        window(scope, length)
    end
end

-- Writes the sums back; what no limit asks for any more goes.
local function save()
    for number, scope in ipairs(scopes) do
        local fields, longest = { 'now', text(now) }, HISTORY
        for length, sum in pairs(scope.windows) do
            if length > 0 and sum.asked < now - length - DAY then
                redis.call('HDEL', scope.sums, text(length))
            else
                longest = math.max(longest, length)
                fields[#fields + 1] = text(length)
                fields[#fields + 1] = string.format('%.0f %.0f %.0f %.0f %.0f',
                    sum.floor, sum.asked, sum[1], sum[2], sum[3])
            end
        end
        redis.call('HSET', scope.sums, unpack(fields))
        expire(scope.sums, math.max(H.lasting[number] and YEAR or MONTH, longest))
        redis.call('ZREMRANGEBYSCORE', scope.log, '-inf', text(now - longest))
        expire(scope.log, longest + HOUR)
    end
    for _, key in ipairs({ OPEN, LEASES, FLIGHTS }) do
        expire(key, HISTORY + HOUR)
    end
end

local function entry_of(amount, id)
    return string.format('%.0f %.0f %.0f %s', amount[1], amount[2], amount[3], id)
end

-- Counts a call in a scope from moment t on (sign 1), or no longer (-1).
local function add(scope, t, amount, sign)
    for _, sum in pairs(scope.windows) do
        if sum.floor < t then
            for metric = 1, 3 do
                sum[metric] = sum[metric] + sign * amount[metric]
            end
        end
    end
end

local function enter(id, t, amount)
    for _, scope in ipairs(scopes) do
        redis.call('ZADD', scope.log, text(t), entry_of(amount, id))
        add(scope, t, amount, 1)
    end
end

-- Puts another amount in the place of what a call counts, in the scopes where it still does.
local function exchange(id, t, before, after)
    for _, scope in ipairs(scopes) do
        if redis.call('ZREM', scope.log, entry_of(before, id)) == 1 then
            add(scope, t, before, -1)
            if after then
                redis.call('ZADD', scope.log, text(t), entry_of(after, id))
                add(scope, t, after, 1)
            end
        end
    end
end

-- A call is kept as JSON with its numbers as texts: cjson would round them.
local function read_call(key)
    local stored = redis.call('GET', key)
    if not stored then
        return nil
    end
    local call = cjson.decode(stored)
    call.t = tonumber(call.t)
    for metric = 1, 3 do
        call.amount[metric] = tonumber(call.amount[metric])
    end
    return call
end

local function write_call(key, call)
    local amount = call.amount
    local stored = cjson.encode({
        state = call.state, t = text(call.t), key = call.key, model = call.model,
        cell = call.cell, day = call.day, owner = call.owner,
        amount = { text(amount[1]), text(amount[2]), text(amount[3]) },
    })
    redis.call('SET', key, stored, 'PX', text((HISTORY + HOUR) / 1000))
end

local function is_leased(owner)
    local lease = redis.call('HGET', LEASES, owner)
    return lease and tonumber(lease) > now
end

-- A call is on its way no more: neither open, nor the flight of its key.
local function land(id, call)
    redis.call('HDEL', OPEN, id)
    if call.key ~= '' and redis.call('HGET', FLIGHTS, call.key) == id .. '\n' .. call.owner then
        redis.call('HDEL', FLIGHTS, call.key)
    end
end

-- Adds to the lines of usage, by day, model and cell.
local function note(call, numbers, sign)
    for place, key in ipairs({ KEYS[4 + 2 * H.scopes], KEYS[5 + 2 * H.scopes] }) do
        -- Cells are those of one kernel.
        local cell = place == 2 and call.cell or ''
        local name = call.day .. '\31' .. call.model .. '\31' .. cell .. '\31'
        for metric, number in pairs(numbers) do
            if number ~= 0 then
                redis.call('HINCRBY', key, name .. metric, text(sign * number))
            end
        end
        expire(key, place == 1 and YEAR or MONTH)
    end
end

-- What a call is in the usage whose process died after it was sent: nobody knows its tokens.
local function lost_numbers(call)
    local requests = call.amount[1]
    return { requests = requests, nanos = call.amount[3], unpriced = requests }
end

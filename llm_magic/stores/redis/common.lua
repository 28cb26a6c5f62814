#!lua flags=allow-oom
-- What every script of the ledger begins with: the scopes of a call, their windows and sums.
--
-- KEYS: 1 what is open; then the sums and the log of each scope; then what a script needs besides:
-- the usage of the user and of the kernel, calls.
-- ARGV: 1 the header as JSON; 2 what is asked, as JSON.
--
-- What is open: "c" and a call's id has its owner, the names of its scopes and its entry in their
-- logs; "l" and an owner has the end of its lease; "f" and a request's key has the id and the owner
-- of its open call.
-- A log has a call as "requests tokens nanos id", by the moment when it was held. A window's sum is
-- that of the entries with t > floor; to look at it moves the floor and takes off what has left, so
-- that a hold costs the same with a hundred calls in the window and with a hundred thousand.
-- Moments and lengths are in microseconds. All numbers are kept below 2^53: a double holds them.
local H = cjson.decode(ARGV[1])
local OPEN = KEYS[1]
local LAST = 1 + 2 * H.scopes
local SECOND = 1000000
local HOUR, DAY = 3600 * SECOND, 86400 * SECOND
-- Calls are known for so long at least, so that a longer limit that is set later counts them.
local HISTORY = 25 * HOUR
local MONTH, YEAR = 30 * DAY, 400 * DAY
local NEVER = 2 ^ 53
-- Places in a window, behind requests, tokens and nano-dollars. NEXT is a moment before which no
-- entry leaves once the floor is there; ASKED is when a limit asked for it last.
local FLOOR, NEXT, ASKED = 4, 5, 6
local USAGE = '<ddddddddd'

local function text(number)
    return string.format('%.0f', number)
end

local function expire(key, length)
    redis.call('PEXPIRE', key, text(math.ceil(length / 1000)))
end

local function damaged()
    error('what is stored is damaged')
end

-- Leases are by the server's clock. Where it was set back, or another server took over, time stands
-- still for everything that counts.
local clock
if H.clock then
    clock = H.clock
else
    local time = redis.call('TIME')
    clock = tonumber(time[1]) * SECOND + tonumber(time[2])
end
local now = clock

local function count(sum, entries, sign)
    local match, requests, tokens, nanos = string.match, 0, 0, 0
    for place = 1, #entries do
        local one, two, three = match(entries[place], '^(%d+) (%d+) (%d+) ')
        if not one then
            damaged()
        end
        requests, tokens, nanos = requests + one, tokens + two, nanos + three
    end
    sum[1] = sum[1] + sign * requests
    sum[2] = sum[2] + sign * tokens
    sum[3] = sum[3] + sign * nanos
end

local function next_after(scope, floor)
    local found = redis.call(
        'ZRANGEBYSCORE', scope.log, '(' .. text(floor), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    return tonumber(found[2]) or NEVER
end

local function counted(scope, floor, asked)
    local sum = { 0, 0, 0, floor, NEVER, asked }
    count(sum, redis.call('ZRANGEBYSCORE', scope.log, '(' .. text(floor), '+inf'), 1)
    sum[NEXT] = next_after(scope, floor)
    return sum
end

-- The sum of a window, up to now. Length 0 is without end: all since the scope began.
local function window(scope, length)
    local sum = scope.windows[length]
    local floor = length > 0 and now - length or -1
    if not sum then
        sum = counted(scope, floor, now)
        scope.windows[length] = sum
        scope.longest = math.max(scope.longest, length)
    elseif floor > sum[FLOOR] then
        if floor - sum[FLOOR] > length then
            sum = counted(scope, floor, sum[ASKED])
            scope.windows[length] = sum
        elseif floor >= sum[NEXT] then
            local left = redis.call(
                'ZRANGEBYSCORE', scope.log, '(' .. text(sum[FLOOR]), text(floor))
            count(sum, left, -1)
            sum[NEXT] = next_after(scope, floor)
        end
        sum[FLOOR] = floor
    end
    return sum
end

-- A scope's sums are doubles: now, the moment of the last pardon, that of the last tidying, how
-- long its log is kept, how many entries that has, how many limits were set for all kernels; of each
-- of them metric, length and cap; of each window its length and what is in it.
local function read_scope(number)
    local scope = {
        sums = KEYS[2 * number], log = KEYS[2 * number + 1], windows = {}, limits = {},
        pardon = -1, tidied = 0, longest = HISTORY, expires = 0, entries = 0,
    }
    local stored = redis.call('GET', scope.sums)
    if stored then
        local size = #stored / 8
        if size < 6 or size % 1 > 0 then
            damaged()
        end
        local found = { struct.unpack('<' .. string.rep('d', size), stored) }
        for place = 1, size do
            -- What is no number is not smaller either.
            if not (found[place] > -NEVER and found[place] < 2 ^ 62) then
                damaged()
            end
        end
        local limits = found[6]
        local first = 7 + 3 * limits
        -- Only as many as there are: the loops below would hold up everybody's Redis.
        if limits < 0 or limits % 1 > 0 or first > size + 1 or (size - first + 1) % 7 ~= 0 then
            damaged()
        end
        now = math.max(now, found[1])
        scope.pardon, scope.tidied, scope.expires = found[2], found[3], found[4]
        scope.entries = found[5]
        for place = 7, first - 1, 3 do
            scope.limits[#scope.limits + 1] = { unpack(found, place, place + 2) }
        end
        for place = first, size, 7 do
            local length = found[place]
            scope.longest = math.max(scope.longest, length)
            scope.windows[length] = { unpack(found, place + 1, place + 6) }
        end
    end
    return scope
end

local scopes = {}
for number = 1, H.scopes do
    scopes[number] = read_scope(number)
end
for _, scope in ipairs(scopes) do
    window(scope, 0)
    -- What is there already may be replaced on the way.
    for length in pairs(scope.windows) do
        window(scope, length)
    end
end

local function save_scope(scope, lasting)
    local longest = HISTORY
    local found = { now, scope.pardon, scope.tidied, 0, 0, #scope.limits }
    for _, limit in ipairs(scope.limits) do
        local place = #found
        found[place + 1], found[place + 2], found[place + 3] = limit[1], limit[2], limit[3]
    end
    for length, sum in pairs(scope.windows) do
        -- What no limit asks for any more goes.
        if length == 0 or sum[ASKED] >= now - length - DAY then
            longest = math.max(longest, length)
            local place = #found
            found[place + 1], found[place + 2], found[place + 3] = length, sum[1], sum[2]
            found[place + 4], found[place + 5] = sum[3], sum[FLOOR]
            found[place + 6], found[place + 7] = sum[NEXT], sum[ASKED]
        end
    end
    local is_due = now - scope.tidied > HOUR / 2
    if is_due then
        local gone = redis.call('ZREMRANGEBYSCORE', scope.log, '-inf', text(now - longest))
        scope.entries, found[3] = scope.entries - gone, now
        expire(OPEN, HISTORY + HOUR)
    end
    -- A log that was emptied is gone, and so is its expiry.
    if is_due or scope.begins or longest > scope.expires then
        expire(scope.log, longest + HOUR)
    end
    found[4], found[5] = longest, scope.entries
    redis.call(
        'SET', scope.sums, struct.pack('<' .. string.rep('d', #found), unpack(found)), 'PX',
        text(math.ceil(math.max(lasting and YEAR or MONTH, longest) / 1000)))
end

-- Lines of usage that are to be written, by their key.
local noted = {}

local function save_scopes()
    for number, scope in ipairs(scopes) do
        save_scope(scope, H.lasting[number])
    end
end

-- Writes everything back.
local function save()
    save_scopes()
    for key, lines in pairs(noted) do
        for field, numbers in pairs(lines) do
            local stored = redis.call('HGET', key, field)
            if stored then
                local before = { struct.unpack(USAGE, stored) }
                for metric = 1, 9 do
                    numbers[metric] = numbers[metric] + before[metric]
                end
            end
            -- With each day there is a new one.
            if redis.call('HSET', key, field, struct.pack(USAGE, unpack(numbers))) == 1 then
                expire(key, key == KEYS[LAST + 1] and YEAR or MONTH)
            end
        end
    end
end

local function entry_of(amount, id)
    return string.format('%.0f %.0f %.0f %s', amount[1], amount[2], amount[3], id)
end

-- Counts a call in a scope from moment t on (sign 1), or no longer (-1).
local function add(scope, t, amount, sign)
    for _, sum in pairs(scope.windows) do
        if sum[FLOOR] < t then
            sum[1] = sum[1] + sign * amount[1]
            sum[2] = sum[2] + sign * amount[2]
            sum[3] = sum[3] + sign * amount[3]
            if t < sum[NEXT] then
                sum[NEXT] = t
            end
        end
    end
end

local function put(scope, moment, entry)
    local is_new = redis.call('ZADD', scope.log, 'NX', moment, entry) == 1
    if is_new then
        scope.begins = scope.begins or scope.entries < 1
        scope.entries = scope.entries + 1
    end
    return is_new
end

local function take(scope, entry)
    local was_there = redis.call('ZREM', scope.log, entry) == 1
    if was_there then
        scope.entries = scope.entries - 1
    end
    return was_there
end

local function enter(id, t, amount)
    local entry, moment = entry_of(amount, id), text(t)
    for _, scope in ipairs(scopes) do
        -- One that is there already counts already: its call was lost.
        if t > scope.pardon and put(scope, moment, entry) then
            add(scope, t, amount, 1)
        end
    end
end

-- Puts another amount in the place of what a call counts, in the scopes where it still does.
local function exchange(id, t, before, after)
    local old, new, moment = entry_of(before, id), after and entry_of(after, id), text(t)
    if old == new then
        return
    end
    for _, scope in ipairs(scopes) do
        -- The new one first, so that the log is never empty.
        local is_new = new and put(scope, moment, new)
        if take(scope, old) then
            add(scope, t, before, -1)
            if is_new then
                add(scope, t, after, 1)
            end
        elseif is_new then
            take(scope, new)
        end
    end
end

-- A call is {state, t, requests, tokens, nanos, key, model, cell, day, owner}; one that is done has
-- nothing but its state. Whoever was voided before it was held is gone.
local STATES = { held = 10, sent = 10, lost = 10, void = 10, gone = 10, done = 1 }

local function read_call(key)
    local stored = redis.call('GET', key)
    if not stored then
        return nil
    end
    local call = cmsgpack.unpack(stored)
    if type(call) ~= 'table' or not call[1] or STATES[call[1]] ~= #call then
        damaged()
    end
    for place = 2, #call do
        local value = call[place]
        if type(value) ~= (place <= 5 and 'number' or 'string') then
            damaged()
        elseif place <= 5 and not (value >= 0 and value < NEVER) then
            damaged()
        end
    end
    return {
        state = call[1], t = call[2], amount = { call[3], call[4], call[5] }, key = call[6],
        model = call[7], cell = call[8], day = call[9], owner = call[10],
    }
end

local function write_call(key, call)
    local stored = { call.state }
    if call.state ~= 'done' then
        local amount = call.amount
        stored = {
            call.state, call.t, amount[1], amount[2], amount[3], call.key, call.model, call.cell,
            call.day, call.owner,
        }
    end
    redis.call('SET', key, cmsgpack.pack(stored), 'PX', text((HISTORY + HOUR) / 1000))
end

local function lapsed(lease)
    if not string.match(lease, '^%d+$') then
        damaged()
    end
    return tonumber(lease) <= clock
end

local function is_leased(owner)
    local lease = redis.call('HGET', OPEN, 'l' .. owner)
    return lease and not lapsed(lease)
end

-- Id and owner of the open call for a key, if there is one and its owner's lease has not run out.
local function flying(key)
    local found = redis.call('HGET', OPEN, 'f' .. key)
    if not found then
        return nil
    end
    local id, owner = string.match(found, '^(.-)\n(.*)$')
    if not id then
        damaged()
    end
    if redis.call('HEXISTS', OPEN, 'c' .. id) == 1 and (owner == H.owner or is_leased(owner)) then
        return id, owner
    end
end

-- A call is on its way no more: neither open, nor the flight of its key.
local function land(id, call)
    local key = 'f' .. call.key
    if call.key ~= '' and redis.call('HGET', OPEN, key) == id .. '\n' .. call.owner then
        redis.call('HDEL', OPEN, 'c' .. id, key)
    else
        redis.call('HDEL', OPEN, 'c' .. id)
    end
end

-- Adds to the lines of usage, by day, model and cell: {requests, input, output, cached, nanos,
-- unpriced, hits, saved tokens, saved nanos}.
local function note(call, numbers, sign)
    for place = 1, 2 do
        -- Cells are those of one kernel.
        local cell = place == 2 and call.cell or ''
        local field = call.day .. '\31' .. call.model .. '\31' .. cell
        local key = KEYS[LAST + place]
        local lines = noted[key] or {}
        local line = lines[field] or { 0, 0, 0, 0, 0, 0, 0, 0, 0 }
        for metric = 1, 9 do
            line[metric] = line[metric] + sign * numbers[metric]
        end
        lines[field], noted[key] = line, lines
    end
end

-- What a call is in the usage whose process died after it was sent: nobody knows its tokens.
local function lost_numbers(call)
    local requests = call.amount[1]
    return { requests, 0, 0, 0, call.amount[3], requests, 0, 0, 0 }
end

-- Does something, and writes everything back. Where it cannot be done to its end, the sums are still
-- those of the logs as they are then.
local function surely(work)
    local done, result = pcall(work)
    if not done then
        pcall(save_scopes)
        error(result)
    end
    save()
    return result
end

-- Holds calls if they fit all limits, as if one after the other.
-- Header: owner, names (those of the scopes, as they are wanted back), lease, day, limits as
-- {scope, metric, length, cap}.
-- Asked: claims as {id, key, {requests, tokens, nanos}, model, cell, sent, place of the call's key}.
-- Gives 'held' where all are; else of each claim {'held'}, or {'held', owner} where it was already;
-- {'gone'}, {'flying', id, owner} or
-- {'full', scope, metric, length, cap, used, asked, moment from which it fits or ''}.
local limits = limits_of()
local WALK, PAGE = 10000, 500
local NUMBER = { '^(%d+) ', '^%d+ (%d+) ', '^%d+ %d+ (%d+) ' }

-- What has left a window in all after each entry, the oldest first, as far as was asked.
local function leaving(scope, length, metric)
    scope.leaving = scope.leaving or {}
    local name = length .. ' ' .. metric
    if not scope.leaving[name] then
        local floor = text(scope.windows[length][FLOOR])
        local first = redis.call('ZCOUNT', scope.log, '-inf', floor)
        scope.leaving[name] = { first = first, sums = {} }
    end
    return scope.leaving[name]
end

-- When so much will have left a window. Not more than WALK calls are looked at: who comes back
-- then is told the rest.
local function fits_at(scope, length, metric, excess)
    local known = leaving(scope, length, metric)
    local first, sums, pattern = known.first, known.sums, NUMBER[metric]
    while (sums[#sums] or 0) < excess and #sums < WALK do
        local from = first + #sums
        local page = redis.call('ZRANGE', scope.log, from, from + PAGE - 1)
        if #page == 0 then
            break
        end
        local sum, place = sums[#sums] or 0, #sums
        for offset, entry in ipairs(page) do
            sum = sum + string.match(entry, pattern)
            sums[place + offset] = sum
        end
    end
    local low, high = 1, #sums
    while low < high do
        local middle = math.floor((low + high) / 2)
        if sums[middle] >= excess then
            high = middle
        else
            low = middle + 1
        end
    end
    local rank = first + low - 1
    local found = redis.call('ZRANGE', scope.log, rank, rank, 'WITHSCORES')
    return (tonumber(found[2]) or now) + length
end

local function full(amount)
    local last
    for _, limit in ipairs(limits) do
        local scope, ask = scopes[limit[1]], amount[limit[2]]
        local used = scope.windows[limit[3]][limit[2]]
        if used + ask > limit[4] then
            local moment = false
            if ask <= limit[4] and limit[3] > 0 then
                moment = fits_at(scope, limit[3], limit[2], used + ask - limit[4])
            end
            if not last or not moment or last.moment < moment then
                last = { limit = limit, used = used, ask = ask, moment = moment }
            end
            if not moment then
                break
            end
        end
    end
    if last then
        local limit = last.limit
        return {
            'full', limit[1], limit[2], text(limit[3]), text(limit[4]), text(last.used),
            text(last.ask), last.moment and text(last.moment) or '',
        }
    end
end

local begins, lease = false, text(clock + H.lease)

local function verdict(claim)
    local id, key, amount, place = claim[1], claim[2], claim[3], claim[7]
    local call = read_call(KEYS[place])
    if call and call.state == 'gone' then
        return { 'gone' }
    elseif call and call.state ~= 'void' then
        return { 'held', call.owner }
    end
    if key ~= '' then
        local other, owner = flying(key)
        if other then
            return { 'flying', other, owner }
        end
    end
    local refused = full(amount)
    if refused then
        return refused
    end
    write_call(KEYS[place], {
        state = claim[6] and 'sent' or 'held', t = now, amount = amount, key = key,
        model = claim[4], cell = claim[5], day = H.day, owner = H.owner,
    })
    enter(id, now, amount)
    local about = H.owner .. '\n' .. H.names .. '\n' .. entry_of(amount, id)
    local added
    if key == '' then
        added = redis.call('HSET', OPEN, 'c' .. id, about, 'l' .. H.owner, lease) + 1
    else
        added = redis.call(
            'HSET', OPEN, 'c' .. id, about, 'l' .. H.owner, lease, 'f' .. key,
            id .. '\n' .. H.owner)
    end
    -- Where something of it was there, the hash was, and so was its expiry.
    begins = begins or added == 3
    return { 'held' }
end

return surely(function()
    local verdicts, all = {}, true
    for place, claim in ipairs(cjson.decode(ARGV[2])) do
        verdicts[place] = verdict(claim)
        all = all and #verdicts[place] == 1 and verdicts[place][1] == 'held'
    end
    if begins then
        expire(OPEN, HISTORY + HOUR)
    end
    return all and 'held' or verdicts
end)

-- Holds calls if they fit all limits, as if one after the other.
-- Header: owner, open (what is said of a call that is open), lease, day, limits as
-- {scope, metric, length, cap}, shared as {scope, key} for the limits that were set for all kernels.
-- Asked: claims as {id, key, {requests, tokens, nanos}, model, cell, sent, place of the call's key}.
-- Gives of each claim {'held'}, {'gone'}, {'flying', id, owner} or
-- {'full', scope, metric, length, cap, used, asked, moment from which it fits or ''}.
local limits = limits_of()
local WALK = 20000

local function leaving(scope, length)
    local known = scope.leaving[length]
    if not known then
        local first = redis.call('ZCOUNT', scope.log, '-inf', text(scope.windows[length].floor))
        known = { rank = first, times = {}, {}, {}, {} }
        scope.leaving[length] = known
    end
    return known
end

-- When so much will have left a window. Not more than WALK calls are looked at: who comes back
-- then is told the rest.
local function fits_at(scope, length, metric, excess)
    local known = leaving(scope, length)
    local sums = known[metric]
    while (sums[#sums] or 0) < excess and #sums < WALK do
        local page = redis.call(
            'ZRANGE', scope.log, known.rank, known.rank + 255, 'WITHSCORES')
        if #page == 0 then
            break
        end
        known.rank = known.rank + #page / 2
        for place = 1, #page, 2 do
            local amount = { string.match(page[place], '^(%d+) (%d+) (%d+) ') }
            known.times[#known.times + 1] = tonumber(page[place + 1])
            for each = 1, 3 do
                local before = known[each][#known[each]] or 0
                known[each][#known[each] + 1] = before + amount[each]
            end
        end
    end
    for place, sum in ipairs(sums) do
        if sum >= excess then
            return known.times[place] + length
        end
    end
    return (known.times[#known.times] or now) + length
end

local function full(amount)
    local last
    for _, limit in ipairs(limits) do
        local scope, ask = scopes[limit[1]], amount[limit[2]]
        local used = window(scope, limit[3])[limit[2]]
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

local function verdict(claim)
    local id, flight, amount, place = claim[1], claim[2], claim[3], claim[7]
    local call = read_call(KEYS[place])
    if call and call.state == 'gone' then
        return { 'gone' }
    elseif call and call.state ~= 'void' then
        return { 'held' }
    end
    if flight ~= '' then
        local flying = redis.call('HGET', FLIGHTS, flight)
        if flying then
            local other, owner = string.match(flying, '^(.-)\n(.*)$')
            if redis.call('HEXISTS', OPEN, other) == 1 and is_leased(owner) then
                return { 'flying', other, owner }
            end
        end
    end
    local refused = full(amount)
    if refused then
        return refused
    end
    write_call(KEYS[place], {
        state = claim[6] and 'sent' or 'held', t = now, amount = amount, key = flight,
        model = claim[4], cell = claim[5], day = H.day, owner = H.owner,
    })
    enter(id, now, amount)
    redis.call('HSET', OPEN, id, H.open)
    redis.call('HSET', LEASES, H.owner, text(now + H.lease))
    if flight ~= '' then
        redis.call('HSET', FLIGHTS, flight, id .. '\n' .. H.owner)
    end
    return { 'held' }
end

local verdicts = {}
for place, claim in ipairs(cjson.decode(ARGV[2])) do
    verdicts[place] = verdict(claim)
end
save()
return verdicts

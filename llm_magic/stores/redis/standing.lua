-- Gives of each limit {scope, metric, length, cap, used}.
local found = {}
for place, limit in ipairs(limits_of()) do
    local used = window(scopes[limit[1]], limit[3])[limit[2]]
    found[place] = { limit[1], limit[2], text(limit[3]), text(limit[4]), text(used) }
end
save()
return found

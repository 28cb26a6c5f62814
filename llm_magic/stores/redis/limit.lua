-- Sets a limit for all kernels, or takes it away.
-- Asked: {metric, length, cap}; the cap is false where it goes.
local scope, limit = scopes[1], cjson.decode(ARGV[2])
local left = {}
for _, each in ipairs(scope.limits) do
    if each[1] ~= limit[1] or each[2] ~= limit[2] then
        left[#left + 1] = each
    end
end
if limit[3] then
    left[#left + 1] = limit
end
table.sort(left, function(one, other)
    if one[1] ~= other[1] then
        return one[1] < other[1]
    end
    return one[2] < other[2]
end)
scope.limits = left
save()

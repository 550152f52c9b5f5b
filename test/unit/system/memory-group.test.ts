import test from 'ava';
import { inLimitedMemoryGroup } from '../../../src/system/memory-group';

function reading(cgroup: string, limit: string): (file: string) => string {
  return (file) => {
    if (file === '/proc/self/cgroup') return cgroup;
    if (file === '/sys/fs/cgroup/memory/vm/memory.stat') return `cache 1\nhierarchical_memory_limit ${limit}\nrss 2\n`;
    throw new Error(`ENOENT ${file}`);
  };
}

test('a memory limit counts that a control group of version 1 sets, also above this one', (t) => {
  const cases: [string, string, boolean][] = [
    ['5:pids:/\n4:memory:/vm\n0::/\n', '536870912', true],
    ['4:cpu,memory,pids:/vm\n', '536870912', true],
    ['4:memory:/vm\n', '9223372036854771712', false],
    ['4:memory:/elsewhere\n', '536870912', false],
    ['0::/vm\n', '536870912', false],
    ['4:memoryless:/vm\n', '536870912', false],
  ];
  for (const [cgroup, limit, expected] of cases) t.is(inLimitedMemoryGroup(reading(cgroup, limit)), expected, cgroup);
  t.is(typeof inLimitedMemoryGroup(), 'boolean');
});

/** Power cuts while a snapshot is taken, deleted, renamed or reverted to, and in repairs after them: the short matrix. */
import test from 'ava';
import { CASES, runCase } from '../crash/matrix';
import { seedOf } from '../helpers/random';

/** Tables of several clusters with a block of counts each, copies from a file, subclusters: those that differ most. */
const NAMES = ['qcow2 alone', 'qcow2 64-bit counts', 'qcow2 version 2 over longer raw', 'qcow2 subclusters'];

const found = CASES.filter(({ kind, image }) => kind.includes('snapshot') && NAMES.includes(image.name));

test('five kinds of runs on four images', (t) => t.is(found.length, 20));

for (const [index, { kind, image, run }] of found.entries()) {
  test(`${image.name}, ${kind}: a power cut leaves it done or not done`, (t) => {
    const thoroughness = { subsets: 1, exhaustive: 3, reopen: 0.15, ask: 0 };
    const outcome = runCase({ kind, image, run }, seedOf(t, 8300 + index), 1, thoroughness);
    t.is(outcome.problem, undefined);
  });
}

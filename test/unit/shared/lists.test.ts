/** Bounded lists of places in the image file, against a plain model. */
import test from 'ava';
import { PlaceList, RunQueue } from '../../../src/shared/place-list';
import { LONG, Random, seedOf } from '../../helpers/random';

const UNIT = 4096;

function placeList(runs: number): { list: PlaceList; words: Int32Array; floats: Float64Array } {
  const words = new Int32Array(4);
  const floats = new Float64Array(runs * 2);
  return { list: new PlaceList(words, 2, floats), words, floats };
}

/** Runs of the list, which must be sorted and apart from each other. */
function runsOf(list: PlaceList, floats: Float64Array): [number, number][] {
  return Array.from({ length: list.count }, (_, index) => [floats[index * 2], floats[index * 2 + 1]]);
}

test('PlaceList: sorted, merged runs of exactly what was added and not taken', (t) => {
  const random = new Random(seedOf(t, 31));
  for (let program = 0; program < (LONG ? 500 : 20); program++) {
    const { list, floats } = placeList(64);
    const free = new Set<number>();
    for (let step = 0; step < 400; step++) {
      const what = random.below(10);
      if (what < 5) {
        const first = random.below(120);
        let count = 0;
        const most = random.between(1, 6);
        while (count < most && !free.has(first + count)) count++;
        if (count === 0) continue;
        t.true(list.add(first * UNIT, count * UNIT));
        for (let i = 0; i < count; i++) free.add(first + i);
      } else if (what < 9) {
        const minimum = random.between(1, 3) * UNIT;
        const length = minimum + random.below(3) * UNIT;
        const taken = list.take(length, minimum);
        const longest = Math.max(0, ...runsOf(list, floats).map(([, bytes]) => bytes));
        if (taken === undefined) {
          t.true(longest < minimum);
          continue;
        }
        t.true(taken.length >= minimum && taken.length <= length && taken.offset % UNIT === 0);
        for (let at = taken.offset; at < taken.offset + taken.length; at += UNIT) t.true(free.delete(at / UNIT));
      } else {
        const end = random.below(130);
        const from = list.takeEndingAt(end * UNIT);
        for (let at = from / UNIT; at < end; at++) t.true(free.delete(at));
      }
      const runs = runsOf(list, floats);
      const listed = runs.flatMap(([offset, bytes]) =>
        Array.from({ length: bytes / UNIT }, (_, i) => offset / UNIT + i),
      );
      if (listed.length !== free.size || !listed.every((unit) => free.has(unit))) {
        t.fail(`program ${program} step ${step}: the list differs from the model`);
        return;
      }
      for (let i = 1; i < runs.length; i++)
        if (runs[i][0] <= runs[i - 1][0] + runs[i - 1][1]) t.fail('runs are not merged');
      t.is(list.total(), free.size * UNIT);
    }
  }
});

test('PlaceList: a full list forgets what joins nothing, and still takes neighbours', (t) => {
  const { list } = placeList(2);
  t.true(list.add(0, UNIT));
  t.true(list.add(4 * UNIT, UNIT));
  t.false(list.add(8 * UNIT, UNIT));
  t.true(list.add(UNIT, UNIT));
  t.true(list.add(3 * UNIT, UNIT));
  t.is(list.total(), 4 * UNIT);
  t.true(list.add(2 * UNIT, UNIT));
  t.is(list.count, 1);
  t.true(list.add(8 * UNIT, UNIT));
  t.is(list.take(6 * UNIT, 6 * UNIT), undefined);
  t.deepEqual(list.take(9 * UNIT, 5 * UNIT), { offset: 0, length: 5 * UNIT });
  t.is(list.takeEndingAt(9 * UNIT), 8 * UNIT);
  t.is(list.takeEndingAt(9 * UNIT), 9 * UNIT);
  t.is(list.count, 0);
});

test('PlaceList: offsets past 2^32 and near 2^53 stay exact', (t) => {
  const { list } = placeList(4);
  const high = 2 ** 53 - 8 * UNIT;
  t.true(list.add(high, UNIT));
  t.true(list.add(high + UNIT, UNIT));
  t.true(list.add(2 ** 40, UNIT));
  t.deepEqual(list.take(UNIT, UNIT), { offset: 2 ** 40, length: UNIT });
  t.deepEqual(list.take(8 * UNIT, UNIT), { offset: high, length: 2 * UNIT });
});

test('RunQueue: arrival order, continued runs of one number merge, a full queue says so', (t) => {
  const queue = new RunQueue(new Int32Array(1), 0, new Float64Array(3 * 3));
  t.is(queue.capacity, 3);
  t.true(queue.add(10, 5, 1));
  t.true(queue.add(15, 5, 1));
  t.true(queue.add(20, 5, 2));
  t.true(queue.add(0, 5, 2));
  t.false(queue.add(100, 5, 2));
  t.true(queue.add(5, 5, 2));
  t.deepEqual(queue.takeAll(), [
    { offset: 10, length: 10, number: 1 },
    { offset: 20, length: 5, number: 2 },
    { offset: 0, length: 10, number: 2 },
  ]);
  t.is(queue.count, 0);
  t.true(queue.add(10, 5, 1));
  t.deepEqual(queue.takeAll(), [{ offset: 10, length: 5, number: 1 }]);
});

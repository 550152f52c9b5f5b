/** A set of small numbers in shared memory. */
import test from 'ava';
import { BitSet, bitSetBytes } from '../../../src/shared/bit-set';
import { Random, seedOf } from '../../helpers/random';

function members(set: BitSet): number[] {
  const found: number[] = [];
  for (let index = set.next(0); index >= 0; index = set.next(index + 1)) found.push(index);
  return found;
}

test('BitSet.next() goes through what is in the set, at both ends of words and of the set', (t) => {
  const count = 104;
  const set = new BitSet(new SharedArrayBuffer(8 + bitSetBytes(count)), 8, count);
  t.deepEqual(members(set), []);
  const wanted = [0, 1, 30, 31, 32, 63, 64, 95, 96, 103];
  for (const index of wanted) set.add(index);
  t.deepEqual(members(set), wanted);
  t.is(set.next(2), 30);
  t.is(set.next(104), -1);
  t.is(set.next(1000), -1);
  set.remove(31);
  set.remove(0);
  set.remove(50);
  t.deepEqual(
    members(set),
    wanted.filter((index) => index !== 0 && index !== 31),
  );
});

test('BitSet against a Set: random numbers added and removed', (t) => {
  const random = new Random(seedOf(t, 41));
  const count = 300;
  const set = new BitSet(new SharedArrayBuffer(bitSetBytes(count)), 0, count);
  const model = new Set<number>();
  for (let step = 0; step < 2_000; step++) {
    const index = random.below(count);
    if (random.chance(0.5)) {
      set.add(index);
      model.add(index);
    } else {
      set.remove(index);
      model.delete(index);
    }
    if (step % 50 === 0)
      t.deepEqual(
        members(set),
        [...model].sort((a, b) => a - b),
      );
  }
});

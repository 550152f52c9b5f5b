/** While a snapshot is taken or deleted, copied flags and counts may disagree: the dirty bit stands on disk for just so long. */
import test from 'ava';
import type { RecordedOperation } from '../../../../src/storage/recording';
import { IMAGES } from '../../../crash/images';
import { recordChange } from '../../../crash/snapshot-run';
import { Random, seedOf } from '../../../helpers/random';

/** Where incompatible_features ends, whose lowest bit says dirty. */
const FEATURES_END = 80;

/** What a header that is written says of the dirty bit; undefined for every other operation. */
function dirtyIn(operation: RecordedOperation): boolean | undefined {
  if (operation.kind !== 'write' || operation.event !== 'header-update') return undefined;
  return (operation.bytes[FEATURES_END - 1 - operation.offset] & 1) === 1;
}

const images = IMAGES.filter(({ name }) => ['qcow2 alone', 'qcow2 subclusters'].includes(name));

test('the images of these tests are there', (t) => {
  t.is(images.length, 2);
});

for (const [index, image] of images.entries()) {
  for (const change of ['take', 'delete'] as const) {
    test(`${image.name}: a crash while a snapshot is changed (${change}) is seen by whoever opens the image next`, (t) => {
      const { log } = recordChange(image, change, {
        random: new Random(seedOf(t, 900 + index)),
        reopen: 0,
        ask: 0,
      });
      const headers = log.flatMap((operation, at) => (dirtyIn(operation) === undefined ? [] : [at]));
      t.deepEqual(
        headers.map((at) => dirtyIn(log[at])),
        [true, false],
        'set once, cleared once',
      );
      const [set, cleared] = headers;
      t.is(log[set + 1].kind, 'sync', 'durable before the next write');
      t.is(log[cleared - 1].kind, 'sync', 'cleared when all else is durable');
      t.is(log[cleared + 1].kind, 'sync', 'and that is durable on return');
      const places = (event: string) => log.flatMap((operation, at) => (operation.event === event ? [at] : []));
      const flags = places('l2-update');
      const counts = places('refcount-update');
      if (change === 'take') t.true(flags.length > 0 && counts.length > 0, 'something is changed');
      t.true(
        flags.every((at) => set < at && at < cleared),
        'copied flags change under the bit only',
      );
      // A deletion first allocates its new table, which no flag speaks of.
      if (change === 'take')
        t.true(
          counts.every((at) => set < at && at < cleared),
          'counts, too',
        );
      else
        t.true(
          counts.some((at) => set < at && at < cleared),
          'what only the snapshot held is given back under the bit',
        );
    });
  }
}

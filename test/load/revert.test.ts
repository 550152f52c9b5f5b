import test from 'ava';
import { Random, seedOf } from '../helpers/random';
import { isRoot, required, workspace } from '../mount/cli';
import { REVERT_KINDS, RevertedImage } from './revert';

test('after kill -9 in a revert the disk is the snapshot or what it was', async (t) => {
  if (!required(t, isRoot(), 'a dead mount is detached by umount(2), which needs root')) return;
  t.is(REVERT_KINDS.length, 5);
  const random = new Random(seedOf(t, 5));
  const kind = REVERT_KINDS[0];
  const image = new RevertedImage({ directory: workspace(t), kind, random, rounds: 2, qemu: false });
  await t.notThrowsAsync(image.live());
  const { rounds, acknowledged, cutDone, cutUndone } = image.counts;
  t.is(rounds, 2);
  t.is(acknowledged + cutDone + cutUndone, 2);
});

import test from 'ava';
import { Random, seedOf } from '../helpers/random';
import { isRoot, required, workspace } from '../mount/cli';
import { KilledImage } from './kill';
import { IMAGE_KINDS } from './kill-images';

test('after kill -9 of the daemon every byte is what was acknowledged or was written later', async (t) => {
  if (!required(t, isRoot(), 'a dead mount is detached by umount(2), which needs root')) return;
  const seed = seedOf(t, 4);
  for (const name of ['qed over raw', 'qcow2, subclusters, with snapshots']) {
    const kind = IMAGE_KINDS.find((candidate) => candidate.name === name)!;
    const directory = workspace(t);
    const random = new Random(seed);
    const settings = { directory, kind, random, rounds: 2, qemu: true, fio: false, lifeMs: 200 };
    const image = new KilledImage(settings);
    await t.notThrowsAsync(image.live(), name);
    t.is(image.counts.rounds, 2);
    t.true(image.counts.syncs > 0 && image.counts.uncertain > 0);
  }
});

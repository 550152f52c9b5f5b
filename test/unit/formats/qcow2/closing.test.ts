/** What closing leaves behind. */
import test from 'ava';
import { takeSnapshot } from '../../../../src/block/snapshots';
import { qcow2Format } from '../../../../src/formats/qcow2/format';
import { MemoryStorage } from '../../../../src/storage/memory';
import { KIB, MIB } from '../../../../src/units';
import { checkStorage, openChainOf } from '../../../helpers/images';

const SIZE = 4 * MIB;

for (const length of [64 * KIB, MIB, SIZE]) {
  test(`no cluster leaks when an image is closed just after ${length} bytes that a snapshot holds were written, with a small cache`, (t) => {
    const storage = MemoryStorage.create(32 * MIB, 'a.qcow2');
    qcow2Format.create?.(storage, { size: SIZE, clusterSize: 512, refcountBits: 64 });
    const before = openChainOf([storage]);
    // Neighbours on the disk lie far apart in the file: each of them has its count in another slice.
    const step = 61 * 512;
    for (let start = 0; start < step; start += 512) {
      for (let offset = start; offset < SIZE; offset += step) before.node.write(offset, Buffer.alloc(512, 1), 0, 512);
    }
    takeSnapshot(before.node, 's');
    before.finish();
    const { node, finish } = openChainOf([storage]);
    node.write(0, Buffer.alloc(length, 2), 0, length);
    finish();
    const { leaks, corruptions, checkErrors } = checkStorage(storage);
    t.deepEqual({ leaks, corruptions, checkErrors }, { leaks: 0, corruptions: 0, checkErrors: 0 });
  });
}

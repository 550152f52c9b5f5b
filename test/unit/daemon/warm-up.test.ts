/** What a worker does before anybody asks: all of it works, stays in memory and leaves nothing behind. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { ImageDescriptor } from '../../../src/block/open';
import { modelOf, warmUp, warmUpWhileIdle } from '../../../src/daemon/warm-up';
import { BlockError } from '../../../src/errors';
import { FORMATS } from '../../../src/formats/registry';
import { KernelServer } from '../../../src/fuse/kernel/serve';
import { FileStorage } from '../../../src/storage/file';
import { longWait, onLongWait } from '../../../src/system/long-wait';
import { GIB, MIB } from '../../../src/units';
import { createImage, type ImageSpec, open, temporaryDirectory } from '../../helpers/images';

/** Descriptors of this process and what they name. */
function descriptors(): string[] {
  return fs.readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [`${fd} ${fs.readlinkSync(`/proc/self/fd/${fd}`)}`];
    } catch {
      return []; // The one that listed them.
    }
  });
}

const ALLOCATING = FORMATS.filter(({ capabilities }) => capabilities.clusters).map(({ name }) => name);

test.serial('warmUp(): thousands of requests to an image of each format succeed, and no descriptor stays open', (t) => {
  const before = descriptors();
  let images = 0;
  for (const format of ALLOCATING) {
    for (const isOverlay of [false, true]) {
      for (const size of [512, 512 * MIB + 1, 64 * 1024 * GIB]) {
        const steps = warmUp({ format, size, isOverlay, probed: isOverlay });
        let count = 0;
        while (!steps.next().done) count++;
        t.true(count > 3000, `${format} ${isOverlay} ${size}`);
        t.deepEqual(descriptors(), before, format);
        images++;
      }
    }
  }
  t.is(images, 18);
});

test.serial('modelOf(): of the first image that can be written and allocates', (t) => {
  const dir = temporaryDirectory(t);
  const image = (format: ImageSpec['format'], readOnly: boolean) => {
    const file = path.join(dir, `${format}${readOnly}`);
    createImage(file, { format, size: MIB });
    const opened = open(file, { readOnly, format });
    t.teardown(() => opened.close());
    return opened.describe();
  };
  const [raw, readOnly, qed, qcow2] = [
    image('raw', false),
    image('qcow', true),
    image('qed', false),
    image('qcow2', false),
  ];
  t.deepEqual(modelOf([undefined, raw, readOnly, qed, qcow2]), {
    format: 'qed',
    size: MIB,
    isOverlay: false,
    probed: false,
  });
  t.is(modelOf([raw, readOnly, undefined]), undefined);
  t.is(warmUpWhileIdle([raw, readOnly], { requests: 0 }), undefined);

  const before = descriptors();
  const mount = { requests: 60 };
  const idle = warmUpWhileIdle([qed], mount);
  for (let call = 0; call < 10; call++) t.true(idle?.());
  mount.requests = 64;
  t.false(idle?.(), 'there is work');
  t.deepEqual(descriptors(), before);
});

test.serial('warmUpWhileIdle(): nobody is told of its waits', (t) => {
  const image = openedQed(t);
  let waits = 0;
  onLongWait({ begins: () => waits++, ends: () => {} });
  t.teardown(() => onLongWait(undefined));
  const idle = warmUpWhileIdle([image], { requests: 0 });
  while (idle?.());
  t.is(waits, 0);
  longWait(() => {});
  t.is(waits, 1);
});

test.serial('warmUpWhileIdle(): no memory, at whatever write: it ends, and nobody else notices', (t) => {
  const image = openedQed(t);
  const before = descriptors();
  const { write } = FileStorage.prototype;
  const failing = [0, 1, 2, 3, 10, 100, 1000, 2000];
  for (const number of failing) {
    const idle = warmUpWhileIdle([image], { requests: 0 });
    let writes = 0;
    FileStorage.prototype.write = function (...args): void {
      if (writes++ >= number) throw new BlockError('NO_SPACE', 'no memory');
      write.apply(this, args);
    };
    try {
      let steps = 0;
      while (idle?.()) steps++;
      t.true(steps < 3000, `write ${number}`);
    } finally {
      FileStorage.prototype.write = write;
    }
    t.true(writes > number, `write ${number}`);
    t.deepEqual(descriptors(), before, `write ${number}`);
  }
  t.is(failing.length, 8);
});

test.serial('warmUpWhileIdle(): a request without a reply ends it, instead of being waited for', (t) => {
  const image = openedQed(t);
  const before = descriptors();
  const { serveNext } = KernelServer.prototype;
  for (const goesOn of [true, false]) {
    const idle = warmUpWhileIdle([image], { requests: 0 });
    KernelServer.prototype.serveNext = () => goesOn;
    try {
      while (idle?.());
    } finally {
      KernelServer.prototype.serveNext = serveNext;
    }
    t.deepEqual(descriptors(), before);
  }
});

function openedQed(t: ExecutionContext): ImageDescriptor {
  const file = path.join(temporaryDirectory(t), 'a.qed');
  createImage(file, { format: 'qed', size: MIB });
  const image = open(file, { format: 'qed' });
  t.teardown(() => image.close());
  return image.describe();
}

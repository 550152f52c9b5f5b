/** What a worker does before anybody asks: all of it works, stays in memory and leaves nothing behind. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import { formatToWarmUp, WarmUp, warmUpWhileIdle } from '../../../src/daemon/warm-up';
import { qedFormat } from '../../../src/formats/qed/format';
import { FORMATS } from '../../../src/formats/registry';
import { MIB } from '../../../src/units';
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

test.serial('WarmUp: thousands of requests to an image of each format succeed, and no descriptor stays open', (t) => {
  for (const format of ALLOCATING) {
    const before = descriptors();
    const warmUp = new WarmUp(format);
    let requests = 0;
    while (warmUp.step()) requests++;
    t.true(descriptors().length > before.length, format);
    warmUp.close();
    t.deepEqual(descriptors(), before, format);
    t.is(requests, 3000, format);
  }
  t.is(ALLOCATING.length, 3);
});

test.serial('formatToWarmUp(): that of the first image that can be written and allocates', (t) => {
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
  t.is(formatToWarmUp([undefined, raw, readOnly, qed, qcow2]), 'qed');
  t.is(formatToWarmUp([raw, readOnly, undefined]), undefined);
  t.is(warmUpWhileIdle([raw, readOnly], { requests: 0 }), undefined);

  const before = descriptors();
  const mount = { requests: 60 };
  const idle = warmUpWhileIdle([qed], mount);
  for (let call = 0; call < 10; call++) t.true(idle?.());
  mount.requests = 64;
  t.false(idle?.(), 'there is work');
  t.deepEqual(descriptors(), before);
});

test.serial('warmUpWhileIdle(): a failure ends it, and nobody else notices', (t) => {
  const dir = temporaryDirectory(t);
  const file = path.join(dir, 'a.qed');
  createImage(file, { format: 'qed', size: MIB });
  const image = open(file, { format: 'qed' });
  t.teardown(() => image.close());
  const before = descriptors();
  const idle = warmUpWhileIdle([image.describe()], { requests: 0 });
  const { create } = qedFormat;
  qedFormat.create = () => {
    throw new Error('no memory');
  };
  try {
    t.false(idle?.());
  } finally {
    qedFormat.create = create;
  }
  t.deepEqual(descriptors(), before);
});

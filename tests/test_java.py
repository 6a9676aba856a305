"""A Java client as the documents describe it, on Apache's HTTP client: what it sends, the sandbox takes."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import requests
from filelock import FileLock
from keystone import cache

from pipeline.sandbox.credentials import APP_CODE

MIME = "4.5.14"  # of httpmime, with which the client and its parts come
POM = f"""
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>client</groupId>
  <artifactId>client</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.httpcomponents</groupId>
      <artifactId>httpmime</artifactId>
      <version>{MIME}</version>
    </dependency>
  </dependencies>
</project>
"""
CLIENT = """
import org.apache.http.HttpHeaders;
import org.apache.http.client.methods.CloseableHttpResponse;
import org.apache.http.client.methods.HttpPost;
import org.apache.http.entity.StringEntity;
import org.apache.http.impl.client.HttpClients;
import org.apache.http.util.EntityUtils;

public class Client {
    public static void main(String[] given) throws Exception {
        HttpPost post = new HttpPost(given[0]);
        post.setHeader(HttpHeaders.CONTENT_TYPE, "application/json");
        post.setHeader(given[1], given[2]);
        post.setEntity(new StringEntity(given[3]));
        CloseableHttpResponse response = HttpClients.createDefault().execute(post);
        System.out.println(response.getStatusLine().getStatusCode());
        System.out.println(EntityUtils.toString(response.getEntity()));
    }
}
"""
pytestmark = pytest.mark.timeout(600)  # the first one may install the libraries


@pytest.fixture(scope="module")
def libraries():
    """Return the class path of the client's libraries, from Maven; nobody has to have Java for the rest."""
    if not shutil.which("javac") or not shutil.which("mvn"):
        pytest.skip("no JDK with Maven here")
    folder = cache() / f"httpmime-{MIME}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            fetch(folder)
    return f"{folder}/*"


def fetch(folder):
    """Have Maven copy them."""
    folder.mkdir(exist_ok=True)
    (folder / "pom.xml").write_text(POM.strip())
    line = ["mvn", "-q", "-B", "-f", folder / "pom.xml", "dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"Maven cannot fetch the libraries: {done.stdout[-300:]}")
    (folder / "complete").touch()


@pytest.mark.parametrize("way", ["token", "app-code"])
def test_a_java_client_gets_an_answer(sandbox, tmp_path, libraries, way):
    """JSON, with a token or an AppCode."""
    url = sandbox()
    user = {"name": "demo", "password": "demo", "domain": {"name": "demo"}}
    identity = {"methods": ["password"], "password": {"user": user}}
    asked = {"auth": {"identity": identity, "scope": {"project": {"name": "demo"}}}}
    token = requests.post(f"{url}/v3/auth/tokens", json=asked, timeout=10).headers["X-Subject-Token"]
    header = ["X-Auth-Token", token] if way == "token" else ["X-Apig-AppCode", APP_CODE]
    flower = {"sepal_length": 3, "sepal_width": 1, "petal_length": 2.2, "petal_width": 4}
    (tmp_path / "Client.java").write_text(CLIENT)
    body = json.dumps({"data": {"req_data": [flower]}})
    line = ["java", "-cp", libraries, tmp_path / "Client.java", f"{url}/v1/infers/iris", *header, body]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    status, answer = done.stdout.strip().split("\n")
    assert status == "200"
    assert json.loads(answer)["data"]["resp_data"][0]["predictresult"]

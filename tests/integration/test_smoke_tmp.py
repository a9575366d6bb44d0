def test_a(app, client_as, api_as, trail_lines):
    c = client_as("doctor")
    assert c.get("/").status_code == 200
    a = api_as("nurse")
    r = a.get("/api/v1/patient/")
    assert r.status_code == 200, r.text
    print(trail_lines.entries())
